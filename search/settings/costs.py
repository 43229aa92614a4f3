"""Costs that follow from the sizes of an architecture, and the part of a space within bounds on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.distillation.optimizers import OptimizerName
from evaluators.metrics.latency import Workload
from evaluators.metrics.pace import Pace, estimated_pace, student_pace
from search.settings.objectives import (
    Bounds,
    amount_as_typed,
    amount_in_words,
    bounds_in_words,
    measured_bounds,
)
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.axes.polynomial import Polynomial, attention_windows
from space.counting.counting import cache_polynomial, decode_flops, matrix_polynomial, parameter_polynomial
from space.cutting.extraction import student_config
from space.enumeration.hand_made import completions, parse_architecture
from space.enumeration.limits import Limits
from space.enumeration.search_space import AXES, SearchSpace
from space.input_error import InputError

_WORKLOADS = {"cpu": Workload(), "cuda": Workload(prompt=1024, answer=128, timed_answer=16)}
Table = NDArray[np.int64]
"""(n, axes) sizes of n architectures, with the axes in the order of ``Axis``."""
KeptOf = Callable[[Architecture], Sequence[int]]
"""Returns the teacher's layers that a student keeps; they depend only on how many layers it has."""


def workload_of(device: str) -> Workload:
    """Return the workload for which latency, KV cache and FLOPs are computed on a device."""
    return _WORKLOADS.get(torch.device(device).type, Workload())


@dataclass(frozen=True)
class Costs:
    """Computes the costs of the students of one teacher."""

    axis_map: AxisMap
    workload: Workload
    value_bytes: int
    """Bytes of a stored weight, and of a value in the KV cache."""

    @property
    def follow_from_sizes(self) -> bool:
        """Whether the costs depend only on how many layers are kept, not on which."""
        reach = list(zip(self.axis_map.kinds, attention_windows(self.axis_map), strict=True))
        return len(set(reach)) == len(set(self.axis_map.kinds))

    def of(self, architecture: Architecture, kept: Sequence[int]) -> dict[str, float]:
        """Return the objectives that follow from the sizes, by name."""
        sizes = {axis: np.array([architecture[axis]]) for axis in Axis}
        return {name: float(amounts[0]) for name, amounts in self._at(sizes, kept).items()}

    def table(self, table: Table, kept_of: KeptOf | None = None) -> dict[str, NDArray[np.int64]]:
        """Return each objective that follows from the sizes, as an array of n values.

        Args:
            table: (n, axes) sizes.
            kept_of: the layers that each student keeps. Without it, objectives that depend on which layers
                are kept are left out.
        """
        if kept_of is None or self.follow_from_sizes:
            found = self._at(_columns(table), None)
            return found if self.follow_from_sizes else {"parameters": found["parameters"]}
        depths = table[:, AXES.index(Axis.LAYERS)]
        whole: dict[str, NDArray[np.int64]] = {}
        for depth in np.unique(depths).tolist():
            rows = depths == depth
            kept = kept_of(Architecture(*table[rows][0].tolist()))
            for name, amounts in self._at(_columns(table[rows]), kept).items():
                whole.setdefault(name, np.empty(len(table), dtype=np.int64))[rows] = amounts
        return whole

    def _at(
        self, sizes: dict[Axis, NDArray[np.int64]], kept: Sequence[int] | None
    ) -> dict[str, NDArray[np.int64]]:
        context = self.workload.prompt + self.workload.answer
        counts: tuple[Polynomial, ...] = (
            parameter_polynomial(self.axis_map),
            cache_polynomial(self.axis_map, context, kept),
            decode_flops(self.axis_map, context, kept),
        )
        parameters, cached, flops = (count.at(sizes) for count in counts)
        memory = (parameters + self.workload.batch * cached) * self.value_bytes
        return {"parameters": parameters, "memory": memory, "flops": flops}


def mask_within(amounts: dict[str, NDArray[np.int64]], bounds: Bounds) -> NDArray[np.bool_]:
    """Return an (n,) mask of the architectures within the bounds on the given objectives.

    Args:
        amounts: (n,) values of each known objective.
        bounds: upper bounds; those on other objectives are ignored.
    """
    found = np.ones(len(next(iter(amounts.values()))), dtype=bool)
    for name, most in bounds.items():
        if name in amounts:
            found &= amounts[name] <= most
    return found


def check_any_inside(amounts: dict[str, NDArray[np.int64]], bounds: Bounds, what: str) -> None:
    """Check that at least one architecture lies within the bounds.

    Args:
        amounts: (n,) values of each known objective.
        bounds: upper bounds; those on other objectives are ignored.
        what: the architectures in words, for the message.

    Raises:
        InputError: none does; the message suggests the bounds that the nearest architecture would meet.
    """
    if mask_within(amounts, bounds).any():
        return
    known = {name: most for name, most in bounds.items() if name in amounts}
    row = int(np.max([amounts[name] / most for name, most in known.items()], axis=0).argmin())
    over = {name: int(amounts[name][row]) for name, most in known.items() if amounts[name][row] > most}
    reached = " and ".join(f"{amount_in_words(name, amount)} of {name}" for name, amount in over.items())
    raise InputError(
        "At least one architecture has to lie within the bounds",
        f"{what} lie outside {bounds_in_words(known)}; the nearest has {reached}",
        f"Allow --max {' '.join(amount_as_typed(*one) for one in over.items())}, or lower --budget",
    )


def within_bounds(
    space: SearchSpace, costs: Costs, bounds: Bounds, kept_of: KeptOf | None = None
) -> SearchSpace:
    """Return the part of a space within the bounds on objectives that follow from the sizes.

    Args:
        space: the architectures within the budget.
        costs: computes their costs.
        bounds: upper bounds; those on measured objectives are ignored.
        kept_of: as for ``Costs.table``.

    Raises:
        InputError: no architecture is left.
    """
    if not bounds.keys() - measured_bounds(bounds).keys():
        return space
    amounts = costs.table(space.table, kept_of)
    check_any_inside(amounts, bounds, f"all {len(space):,} architectures within {space.budget}")
    return space.part(mask_within(amounts, bounds))


def _columns(table: Table) -> dict[Axis, NDArray[np.int64]]:
    return {axis: table[:, place] for place, axis in enumerate(AXES)}


def tried_architectures(
    texts: Sequence[str],
    costs: Costs,
    space: SearchSpace,
    limits: Limits,
    bounds: Bounds,
    kept_of: KeptOf | None = None,
) -> list[Architecture]:
    """Return the architectures that the user asked for with ``--try``, without duplicates.

    Sizes that the user did not give stay the teacher's as far as the budget and the bounds allow.

    Args:
        texts: the values of ``--try``, such as ``hidden=3072,mlp=9216``.
        costs: computes the costs of the students.
        space: the search space.
        limits: the user's limits on the sizes (``--keep``, ``--sizes``).
        bounds: the user's upper bounds on objectives.
        kept_of: as for ``Costs.table``.

    Raises:
        InputError: a text cannot be parsed, or no such architecture exists within the budget and the bounds.
    """
    found: dict[Architecture, None] = {}
    for text in texts:
        meant = completions(parse_architecture(text), costs.axis_map, space, limits)
        amounts = costs.table(meant.table, kept_of)
        which = f"all {len(meant)} architectures" if len(meant) > 1 else "the architectures"
        check_any_inside(amounts, bounds, f"{which} within {space.budget} with --try {text}")
        found[meant[int(np.flatnonzero(mask_within(amounts, bounds))[0])]] = None
    return list(found)


def mean_matrices(axis_map: AxisMap, space: SearchSpace) -> tuple[int, float]:
    """Return the weights that multiply each token: of the teacher, and of the mean student."""
    matrices = matrix_polynomial(axis_map)
    students = matrices.at({axis: space.column(axis) for axis in Axis})
    return int(matrices.of(axis_map.teacher)), float(students.mean())


def pace_estimate(axis_map: AxisMap, space: SearchSpace, device: str, dtype: str) -> Pace:
    """Estimate the speed of a mean student on this device by its arithmetic."""
    _, mean = mean_matrices(axis_map, space)
    return estimated_pace(round(mean), torch.device(device), dtype, workload_of(device))


def pace_of(
    axis_map: AxisMap,
    space: SearchSpace,
    device: str,
    dtype: str,
    batch_blocks: int,
    block: int,
    optimizer: OptimizerName = OptimizerName.ADAMW,
) -> Pace:
    """Measure the speed of a typical student on this device; takes some ten seconds, up to two minutes."""
    middle = typical_architecture(space)
    config = student_config(axis_map, middle, range(middle.layers))
    workload = workload_of(device)
    return student_pace(config, torch.device(device), dtype, batch_blocks, block, workload, optimizer)


def typical_architecture(space: SearchSpace) -> Architecture:
    """Return the architecture nearest to the mean size of every axis, by the sum of absolute log ratios.

    All architectures near a budget have about as many parameters; their speed depends on layers and widths.
    """
    sizes = space.table[:, space.table.min(0) > 0]
    distances = np.abs(np.log(sizes / sizes.mean(0))).sum(1)
    return space.architectures[int(np.round(distances, 9).argmin())]
