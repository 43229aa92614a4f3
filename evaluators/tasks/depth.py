"""Layers scored by a task: what the mean margin loses without a layer, or without a row of layers.

The passes are those of ``evaluators.importance.layer_removal``, over the examples instead of the calibration
text; only the cost differs. It is the margin with its sign turned, so that higher is worse, as with a loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.layer_passes import PartialPasses
from evaluators.importance.layer_removal import Cost
from evaluators.tasks.examples import Example
from evaluators.tasks.likelihood import TOKENS_AT_ONCE, ChoiceBatch, EncodedChoice, batches_by_length
from evaluators.tasks.scores import task_scores


class MarginCosts:
    """Makes the costs of batches of whole examples, see ``Costs``."""

    def __init__(self, examples: Sequence[Example], choices: Sequence[EncodedChoice]) -> None:
        self.examples = examples
        self._batches = [_batch(choices, rows) for rows in _rows_together(choices, len(examples))]

    @property
    def batches(self) -> list[Tensor]:
        """The batches, each (B, T) token ids, padded."""
        return [batch.tokens for batch in self._batches]

    def __call__(self, passes: PartialPasses) -> Cost:
        """Return the cost function of a batch."""
        batch = self._batches[passes.number]
        rows = list(dict.fromkeys(choice.row for choice in batch.choices))
        return NegativeMargin(passes.model, [self.examples[row] for row in rows], batch)


class NegativeMargin:
    """The sum of the examples' margins, its sign turned, in nats."""

    heads = 1

    def __init__(self, model: PreTrainedModel, examples: Sequence[Example], batch: ChoiceBatch) -> None:
        self.model, self.examples, self.batch = model, examples, batch

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """Return the sum, and the number of examples.

        Args:
            states: (B, T, D) final states.
        """
        found = self.batch.log_likelihoods(self.model, states).tolist()
        return -float(np.sum(task_scores(self.examples, found).margins)), len(self.examples)


def _batch(choices: Sequence[EncodedChoice], rows: Sequence[int]) -> ChoiceBatch:
    wanted = set(rows)
    numbers = [number for number, choice in enumerate(choices) if choice.row in wanted]
    return ChoiceBatch([choices[number] for number in numbers], numbers)


def _rows_together(choices: Sequence[EncodedChoice], examples: int) -> list[list[int]]:
    """Return the examples in batches, of like lengths, by the tokens of all their choices."""
    sizes = [0] * examples
    for choice in choices:
        sizes[choice.row] += len(choice.ids)
    return batches_by_length(sizes, TOKENS_AT_ONCE)
