"""How far a student is from its teacher where the right answers of a task stand.

At each token of the right choice the two models' distributions of that token are compared, in one forward
pass and without a coin flip: what the student would get right by luck does not count, nor what it gets wrong
by a hair. The teacher's final states there are kept, and its head turns them into distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size
from evaluators.tasks.examples import Example
from evaluators.tasks.likelihood import EncodedChoice, choice_batches


@dataclass(frozen=True, eq=False)
class AnswerDivergence:
    """KL divergence of students from their teacher, at the tokens of the right choices."""

    choices: Sequence[EncodedChoice]
    """The right choices."""
    teacher: PreTrainedModel
    """Of which the head is used; it has to be on the device meanwhile."""
    states: Sequence[Tensor]
    """For each choice (n, D), the teacher's final states before each of its tokens, on the host."""

    @classmethod
    def of(
        cls, teacher: PreTrainedModel, examples: Sequence[Example], choices: Sequence[EncodedChoice]
    ) -> AnswerDivergence:
        """Run the teacher over the right choices.

        Args:
            teacher: in evaluation mode, on the device.
            examples: the task's.
            choices: every choice of every example, from ``encode_choices``.
        """
        right = [choice for choice in choices if choice.column == examples[choice.row].answer]
        return cls(right, teacher, answer_states(teacher, right))

    @torch.no_grad()
    def __call__(self, student: PreTrainedModel) -> Tensor:
        """Return (N,) float64: for each example the mean of KL(teacher‖student) over its answer, in nats.

        Args:
            student: in evaluation mode, on the device.
        """
        found = torch.zeros(len(self.choices), dtype=torch.float64)
        for batch in choice_batches(self.choices):
            states = final_states(student, batch.tokens.to(student.device))
            mine = batch.answer_states(states)
            theirs = torch.cat([self.states[number] for number in batch.numbers]).to(mine.device)
            sums = _divergences(student, mine, self.teacher, theirs)
            counts = [choice.predicted for choice in batch.choices]
            found[list(batch.numbers)] = torch.stack([part.mean() for part in sums.split(counts)])
        return found


@torch.no_grad()
def answer_states(model: PreTrainedModel, choices: Sequence[EncodedChoice]) -> list[Tensor]:
    """Return for each choice (n, D): the final states before each of its n tokens, on the host."""
    found: list[Tensor] = [torch.empty(0)] * len(choices)
    for batch in choice_batches(choices):
        states = batch.answer_states(final_states(model, batch.tokens.to(model.device))).cpu()
        parts = states.split([choice.predicted for choice in batch.choices])
        for number, part in zip(batch.numbers, parts, strict=True):
            found[number] = part.clone()
    return found


def _divergences(student: PreTrainedModel, mine: Tensor, teacher: PreTrainedModel, theirs: Tensor) -> Tensor:
    """Return (m,) float64 divergences in nats, on the host, from (m, D) states of each model."""
    size = token_slice(2 * vocabulary_size(teacher))
    parts = []
    for own, other in zip(mine.split(size), theirs.split(size), strict=True):
        q = logits_of(student, own).float().log_softmax(-1)
        p = logits_of(teacher, other).float().log_softmax(-1)
        parts.append(nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).double().cpu())
    return torch.cat(parts)
