"""Divergence from the teacher at the right answers, beside whole distributions, one text at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.tasks.divergence import AnswerDivergence
from evaluators.tasks.examples import Example
from evaluators.tasks.likelihood import EncodedChoice
from tests.evaluators.tiny_models import tiny_model

EXAMPLES = [Example((("a", "b"), ("a", "c")), 1), Example((("", "d"), ("", "e")), 0)]
CHOICES = [
    EncodedChoice(0, 0, (3, 4, 5), 2),
    EncodedChoice(0, 1, (3, 4, 6, 7, 8, 9), 2),
    EncodedChoice(1, 0, (1, 9, 10), 1),
    EncodedChoice(1, 1, (1, 8, 12), 1),
]


@torch.no_grad()
def _log_p(model: PreTrainedModel, choice: EncodedChoice) -> Tensor:
    logits: Any = model(input_ids=torch.tensor([choice.ids])).logits[0]
    log_p: Tensor = logits.double().log_softmax(-1)[choice.start - 1 : -1]
    return log_p


def test_it_is_the_mean_divergence_over_each_right_answer() -> None:
    teacher, student = tiny_model(seed=0), tiny_model(seed=1)
    found = AnswerDivergence.of(teacher, EXAMPLES, CHOICES)(student)
    assert found.shape == (2,)
    for value, choice in zip(found.tolist(), (CHOICES[1], CHOICES[2]), strict=True):
        p, q = _log_p(teacher, choice), _log_p(student, choice)
        assert value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_a_teacher_does_not_differ_from_itself() -> None:
    teacher = tiny_model()
    assert AnswerDivergence.of(teacher, EXAMPLES, CHOICES)(teacher).abs().max() < 1e-6
