"""Counts of what code holds while it runs, made once each; closed forms where a class cannot be counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from evaluators.metrics.activation_memory import Head, TrainingActivations, TrainingWork, training_activations
from evaluators.metrics.forward_memory import ForwardWork
from evaluators.metrics.memory import rows_polynomial, weight_bytes
from space.axes.architecture import Architecture
from space.axes.axis_map import BUILD_ERRORS, AxisMap
from space.cutting.moment_sizes import ReadSize, read_sizes

#: Bytes that a training step saves for each input and output of a matrix, by the closed form.
BYTES_A_ROW = 3
#: Logits of a slice in float32, and their gradient or copies.
_SLICES = 8 * 2**26
TOKENS_AT_ONCE = 4096

T = TypeVar("T")


class Counts:
    """Remembers counts, and which of them are estimates."""

    def __init__(self) -> None:
        self._found: dict[Hashable, object] = {}
        self.estimated: set[str] = set()
        """Model types that do not run on tensors without values."""

    def forward(self, kind: str, work: ForwardWork, count: Callable[[ForwardWork], T], estimate: T) -> T:
        """Return the count of a forward pass, or else the estimate."""
        sizes = (work.architecture, work.block, work.blocks, work.weights, work.autocast)
        key = (kind, _key(work.axis_map), sizes)
        return self._kept(key, work.axis_map, lambda: count(work), lambda: estimate)

    def step(
        self, axis_map: AxisMap, architecture: Architecture, work: TrainingWork, head: Head | None
    ) -> TrainingActivations:
        """Return the count of a training step, or else its closed form."""
        key = ("step", _key(axis_map), architecture, str(work), str(head and head.config.to_dict()))
        return self._kept(
            key,
            axis_map,
            lambda: training_activations(axis_map, architecture, work, head),
            lambda: step_by_rows(axis_map, architecture, work),
        )

    def reads(self, axis_map: AxisMap) -> list[ReadSize]:
        """Return the matrices of a teacher that read neurons or heads."""
        key = ("reads", _key(axis_map))
        if key not in self._found:
            self._found[key] = read_sizes(axis_map)
        return self._found[key]  # type: ignore[return-value]

    def _kept(self, key: Hashable, axis_map: AxisMap, count: Callable[[], T], estimate: Callable[[], T]) -> T:
        if key not in self._found:
            try:
                self._found[key] = count()
            except BUILD_ERRORS:
                self.estimated.add(axis_map.config.model_type)
                self._found[key] = estimate()
        return self._found[key]  # type: ignore[return-value]


#: Of this process, so that a plan, its refusals and a run count once.
COUNTS = Counts()


def _key(axis_map: AxisMap) -> str:
    return str(axis_map.config.to_json_string(use_diff=False))


def pass_by_rows(axis_map: AxisMap) -> int:
    """Return the closed form of a forward pass: one layer's inputs and outputs, and a slice of logits."""
    rows = int(rows_polynomial(axis_map).of(axis_map.teacher)) // axis_map.teacher.layers
    return TOKENS_AT_ONCE * rows * 4 + _SLICES


def step_by_rows(axis_map: AxisMap, architecture: Architecture, work: TrainingWork) -> TrainingActivations:
    """Return the closed form of a step's activations, from the inputs and outputs of matrices."""
    value = BYTES_A_ROW * (1 if work.autocast else 2)
    rows = int(rows_polynomial(axis_map).of(architecture)) * value
    layer = rows // architecture.layers
    saved = 4 * architecture.hidden * architecture.layers + layer if work.recompute else rows
    scores = 8 * architecture.heads * work.block * architecture.layers if work.eager else 0
    block = work.block * (saved + scores)
    converted = 2 * weight_bytes(axis_map, torch.int8, architecture) if work.autocast else 0
    first = block + converted + _SLICES
    return TrainingActivations((first, first), (block, block), (work.block * layer, work.block * layer), 0)
