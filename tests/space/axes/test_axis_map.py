from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, Coupling, MappedTensor, build, layer_modules
from space.axes.layout import Fixed, PerUnit
from space.discovery.discovery import discover
from tests.space.models import SMALL

HIDDEN = PerUnit(Axis.HIDDEN, 24, Fixed(1))


@pytest.fixture(scope="module")
def axis_map() -> AxisMap:
    return discover(SMALL).axis_map


def test_a_tensor_knows_its_axes_and_module() -> None:
    queries = PerUnit(Axis.KV_HEADS, 2, PerUnit(Axis.HEADS, 2, Fixed(8)))
    tensor = MappedTensor("model.layers.1.self_attn.q_proj.weight", (queries, HIDDEN), 1)
    assert tensor.axes == (frozenset({Axis.KV_HEADS, Axis.HEADS}), frozenset({Axis.HIDDEN}))
    assert tensor.module == "model.layers.1.self_attn.q_proj"
    assert tensor.has(Axis.HEADS)
    assert not tensor.has(Axis.MLP)


class TestAxes:
    def test_all_of_a_plain_class_are_free(self, axis_map: AxisMap) -> None:
        plain = (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS)
        assert axis_map.axes == axis_map.free == plain
        assert axis_map.sortable == set(plain)

    def test_a_refused_one_stays(self, axis_map: AxisMap) -> None:
        without = replace(axis_map, refused={Axis.MLP: "because"})
        assert Axis.MLP in without.axes
        assert Axis.MLP not in without.free
        assert Axis.MLP not in without.sortable

    def test_a_coupled_one_is_not_chosen_and_moves_with_its_leader(self, axis_map: AxisMap) -> None:
        tied = replace(axis_map, couplings=(Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, 6)),))
        assert Axis.HEADS not in tied.free
        assert Axis.HEADS in tied.sortable
        assert tied.complete({Axis.HIDDEN: 12}) == Architecture(12, 44, 2, 2, 3)
        assert Axis.HEADS not in replace(tied, refused={Axis.HIDDEN: "because"}).sortable

    def test_couplings_follow_one_another(self, axis_map: AxisMap) -> None:
        heads = Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, 6))
        chain = replace(axis_map, couplings=(heads, Coupling(Axis.KV_HEADS, Axis.HEADS, Fraction(1))))
        assert chain.complete({Axis.HIDDEN: 18}) == Architecture(18, 44, 3, 3, 3)
        assert Axis.KV_HEADS in chain.sortable

    def test_a_size_between_the_steps_is_a_mistake(self, axis_map: AxisMap) -> None:
        tied = replace(axis_map, couplings=(Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, 6)),))
        with pytest.raises(AssertionError, match="hidden has to move in steps of 6"):
            tied.complete({Axis.HIDDEN: 13})

    def test_what_is_not_named_stays_the_teacher_s(self, axis_map: AxisMap) -> None:
        assert axis_map.complete({}) == axis_map.teacher
        assert axis_map.complete({Axis.MLP: 7}) == replace(axis_map.teacher, mlp=7)


def test_layers_are_found_in_a_built_model(axis_map: AxisMap) -> None:
    model = build(SMALL)
    assert layer_modules(model, axis_map) == list(model.get_submodule("model.layers").children())
    assert all(parameter.is_meta for parameter in model.parameters())
