"""Layers scored by margins, beside teachers from which the layers were taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank
from evaluators.tasks.depth import MarginCosts
from evaluators.tasks.examples import Example
from evaluators.tasks.likelihood import EncodedChoice
from evaluators.tasks.scores import task_scores
from space.axes.architecture import Axis
from tests.evaluators.importance.depth import by_surgery
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model

LAYERS = 4
TEXT = random_tokens(5, 9)


def _choices() -> tuple[list[Example], list[EncodedChoice]]:
    """Twelve examples of two or three choices of several lengths, of random tokens."""
    generator = np.random.default_rng(0)
    examples, choices = [], []
    for row in range(12):
        number = int(generator.integers(2, 4))
        examples.append(
            Example(tuple((str(row), str(n)) for n in range(number)), int(generator.integers(number)))
        )
        for column in range(number):
            ids = tuple(generator.integers(1, 20, int(generator.integers(4, 15))).tolist())
            choices.append(EncodedChoice(row, column, ids, int(generator.integers(1, 4))))
    return examples, choices


@torch.no_grad()
def _margin(model: PreTrainedModel, examples: list[Example], choices: list[EncodedChoice]) -> float:
    found = []
    for choice in choices:
        ids = torch.tensor([choice.ids])
        log_p: Any = model(input_ids=ids).logits[0].log_softmax(-1)
        picked = log_p[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        found.append(float(picked[choice.start - 1 :].double().sum()))
    return task_scores(examples, found).margin.value


@pytest.mark.parametrize("at_once", [4096, 40])
def test_scores_are_margins_without_the_layers(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.tasks.depth.TOKENS_AT_ONCE", at_once)
    model = tiny_model(num_hidden_layers=LAYERS)
    examples, choices = _choices()
    judge = MarginCosts(examples, choices)
    assert (len(judge.batches) > 3) == (at_once == 40)
    method = Method(depth=Depth.BLOCK_BENCHMARK)
    found = rank(model, map_of(model.config), TEXT, "", method=method, judge=judge)
    assert found.blocks is not None
    for length in (1, 2, 3):
        for start in range(LAYERS + 1 - length):
            less = by_surgery.without(model, list(range(start, start + length)))
            wanted = -_margin(less, examples, choices)
            assert float(found.blocks[length - 1, start]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    single = rank(model, map_of(model.config), TEXT, "", method=Method(depth=Depth.BENCHMARK), judge=judge)
    assert_close(single.scores[Axis.LAYERS], found.blocks[0], rtol=1e-5, atol=1e-5)
