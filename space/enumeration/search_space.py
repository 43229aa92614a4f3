"""The search space: a table with every architecture within the tolerance of a budget, counted exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.polynomial import Polynomial
from space.counting.budget import Budget

AXES = tuple(Axis)


@dataclass(frozen=True)
class Architectures(Sequence[Architecture]):
    """A sequence view of a table of sizes that creates architectures on access."""

    table: NDArray[np.int64]
    """(n, axes) sizes."""

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> Architecture: ...

    @overload
    def __getitem__(self, place: slice) -> list[Architecture]: ...

    def __getitem__(self, place: int | slice) -> Architecture | list[Architecture]:
        if isinstance(place, slice):
            return [Architecture(*row) for row in self.table[place].tolist()]
        return Architecture(*self.table[place].tolist())

    def __iter__(self) -> Iterator[Architecture]:
        return (Architecture(*row) for row in self.table.tolist())


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """All architectures within the tolerance of a budget, in a fixed order."""

    budget: Budget
    free_axes: tuple[Axis, ...]
    """The axes that a sampler chooses; they determine all other sizes."""
    solved: Axis | None
    """The axis whose size the budget determines, if any."""
    table: NDArray[np.int64]
    """(n, axes) sizes, with the axes in the order of ``Axis``."""
    parameters: NDArray[np.int64]
    """(n,) exact numbers of parameters."""
    count: Polynomial
    """The number of parameters as a function of the sizes."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def architectures(self) -> Architectures:
        """All architectures, one per row of the table."""
        return Architectures(self.table)

    def column(self, axis: Axis) -> NDArray[np.int64]:
        """Return (n,) the sizes of an axis."""
        return self.table[:, AXES.index(axis)]

    def values(self, axis: Axis) -> list[int]:
        """Return the distinct sizes of an axis, ascending."""
        found: list[int] = np.unique(self.column(axis)).tolist()
        return found

    @cached_property
    def free_table(self) -> NDArray[np.int64]:
        """(n, free axes) sizes of the free axes."""
        return self.table[:, [AXES.index(axis) for axis in self.free_axes]]

    def row(self, free_sizes: Sequence[int]) -> int:
        """Return the row with these sizes of the free axes.

        Raises:
            KeyError: no row has these sizes.
        """
        levels, weights, codes, order = self._index
        code = 0
        for size, level, weight in zip(free_sizes, levels, weights, strict=True):
            place = int(np.searchsorted(level, size))
            if place == len(level) or level[place] != size:
                raise KeyError(tuple(free_sizes))
            code += place * weight
        place = int(np.searchsorted(codes, code))
        if place == len(codes) or codes[place] != code:
            raise KeyError(tuple(free_sizes))
        return int(order[place])

    def parameters_of(self, architecture: Architecture) -> int:
        """Return the exact number of parameters of any architecture, in the space or not."""
        return self.count.of(architecture)

    def part(self, inside: NDArray[np.bool_]) -> SearchSpace:
        """Return the subspace of the rows for which ``inside`` (n,) is true."""
        return replace(self, table=self.table[inside], parameters=self.parameters[inside])

    @cached_property
    def _index(
        self,
    ) -> tuple[list[NDArray[np.int64]], list[int], NDArray[np.int64], NDArray[np.intp]]:
        """The sorted mixed-radix codes of all rows: (sizes per axis, radix weights, codes, their rows)."""
        levels, weights, weight = [], [], 1
        codes = np.zeros(len(self.table), dtype=np.int64)
        for column in self.free_table.T:
            level, places = np.unique(column, return_inverse=True)
            levels.append(level)
            weights.append(weight)
            codes += places * weight
            weight *= len(level)
        order = np.argsort(codes, kind="stable")
        return levels, weights, codes[order], order
