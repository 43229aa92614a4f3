"""The table of a space: rows made into architectures when they are looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import build
from space.counting.budget import Budget
from space.cutting.extraction import student_config
from space.enumeration.enumeration import enumerate_space
from space.enumeration.search_space import AXES, Architectures, SearchSpace
from tests.space.maps import map_of

SPACE: SearchSpace = enumerate_space(map_of("small"), Budget(10_000, 0.1))


def test_architectures_are_the_rows() -> None:
    found = SPACE.architectures
    assert len(found) == len(SPACE) == len(SPACE.table) > 3
    assert list(found) == [found[row] for row in range(len(found))] == found[:]
    assert found[-1] == list(found)[-1]
    for row, architecture in zip(SPACE.table.tolist(), found, strict=True):
        assert row == [architecture[axis] for axis in AXES]
    assert found[0] in found
    assert Architecture(1, 1, 1, 1, 1) not in found


def test_values_of_an_axis_are_those_that_occur() -> None:
    for axis in Axis:
        assert SPACE.values(axis) == sorted({architecture[axis] for architecture in SPACE.architectures})


def test_each_row_is_found_by_the_sizes_of_its_free_axes() -> None:
    for row, architecture in enumerate(SPACE.architectures):
        assert SPACE.row([architecture[axis] for axis in SPACE.free_axes]) == row
        assert SPACE.parameters_of(architecture) == SPACE.parameters[row]


def test_what_is_no_member_is_not_found() -> None:
    for sizes in ([1, 1, 1, 1], [24, 4, 2, 99], [10**6] * 4):
        with pytest.raises(KeyError):
            SPACE.row(sizes)
    odd = SPACE.part(np.arange(len(SPACE)) % 2 == 1)
    assert odd.architectures[:] == SPACE.architectures[:][1::2]
    assert odd.parameters.tolist() == SPACE.parameters[1::2].tolist()
    with pytest.raises(KeyError):
        odd.row([SPACE.architectures[0][axis] for axis in SPACE.free_axes])


def test_parameters_are_known_of_what_is_no_member() -> None:
    inside = SPACE.architectures[0]
    beside = replace(inside, mlp=inside.mlp + 1)
    assert beside not in SPACE.architectures
    axis_map = map_of("small")
    built = build(student_config(axis_map, beside, range(beside.layers)))
    assert SPACE.parameters_of(beside) == built.num_parameters()


def test_a_large_table_makes_no_architectures_until_they_are_asked_for() -> None:
    table = np.arange(9 * 10**6).reshape(-1, 9)
    assert Architectures(table)[10**6 - 1].hidden == 9 * 10**6 - 9
