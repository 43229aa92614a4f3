from __future__ import annotations

from space.axes.architecture import Architecture, Axis

ARCHITECTURE = Architecture(hidden=96, mlp=256, heads=6, kv_heads=2, layers=7)


def test_every_axis_has_a_size_and_those_that_the_class_lacks_have_none() -> None:
    assert [ARCHITECTURE[axis] for axis in Axis] == [96, 256, 6, 2, 7, 0, 0, 0, 0]
    assert ARCHITECTURE.sizes() == {"hidden": 96, "mlp": 256, "heads": 6, "kv_heads": 2, "layers": 7}
    assert Architecture(**ARCHITECTURE.sizes()) == ARCHITECTURE


def test_the_label_tells_every_size_and_fits_a_file() -> None:
    assert ARCHITECTURE.label == "h96-m256-q6-kv2-l7"
    others = {
        Architecture(**ARCHITECTURE.sizes() | {axis.value: ARCHITECTURE[axis] + 1}).label for axis in Axis
    }
    assert len(others | {ARCHITECTURE.label}) == len(Axis) + 1


def test_the_same_sizes_are_the_same_candidate() -> None:
    assert len({ARCHITECTURE, Architecture(96, 256, 6, 2, 7), Architecture(96, 256, 6, 2, 8)}) == 2
    assert sorted([Architecture(96, 256, 6, 2, 8), ARCHITECTURE])[0] == ARCHITECTURE
