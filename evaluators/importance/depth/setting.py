"""What layers are scored on: a teacher, and batches of the calibration set."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.depth.passes import Passes
from space.axes.axis_map import AxisMap


@dataclass(frozen=True, eq=False)
class Setting:
    """A teacher and its text."""

    model: PreTrainedModel
    """In evaluation mode."""
    axis_map: AxisMap
    batches: Sequence[Tensor]
    """Each (B, T) token numbers, those of this process."""
    reuse: bool = True
    """Whether passes may start in the middle, from ``sharing.only_states``."""
    accelerator: Accelerator | None = None
    """Of the processes, each with batches of its own; None for this one alone."""

    @property
    def layers(self) -> int:
        """L, the teacher's."""
        return self.axis_map.teacher.layers

    def passes(self, gone: Collection[int] = ()) -> Iterator[Passes]:
        """A whole pass over each batch, with some layers gone."""
        for batch in self.batches:
            tokens = batch.to(self.model.device, torch.long)
            yield Passes(self.model, self.axis_map, tokens, gone, reuse=self.reuse)

    def mean(self, total: Tensor, count: int) -> Tensor:
        """The sum of all processes' totals over the sum of their counts; the same in each.

        Args:
            total: of this process, on the host.
            count: of its summands.
        """
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            parts = gather_object([(total, count)])
            total, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        assert count, "nothing was looked at"
        return total / count
