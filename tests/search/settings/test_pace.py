"""Which student tells how fast a device is."""

from __future__ import annotations

import numpy as np

from search.settings.costs import typical_architecture
from space.axes.architecture import Axis
from tests.search.synthetic import demo_space


def test_the_middling_student_is_none_of_the_extremes() -> None:
    space = demo_space()
    found = typical_architecture(space)
    assert found in space.architectures
    for axis in (Axis.HIDDEN, Axis.LAYERS, Axis.MLP):
        sizes = np.sort(space.column(axis))
        assert sizes[len(sizes) // 10] <= found[axis] <= sizes[-len(sizes) // 10]


def test_of_a_space_of_one_it_is_that_one() -> None:
    space = demo_space()
    alone = space.part(np.arange(len(space)) == 7)
    assert typical_architecture(alone) == space.architectures[7]
