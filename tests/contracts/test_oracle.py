"""The masked teacher that vouches for every class, against students written out by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from transformers import PreTrainedModel

from space.axes.axis_map import AxisMap
from space.axes.layout import Concatenated, Fixed, PerUnit
from space.cutting.extraction import layers_kept
from space.discovery.discovery import discover
from space.verification.contract import TOLERANCE, distance
from space.verification.masked import entries
from space.verification.masked import masked_teacher as masked
from space.verification.masked import top_places as best_of
from tests.contracts.draws import Cut, cuts, ranking_of
from tests.contracts.masked import best, masked_teacher
from tests.contracts.mixture_by_hand import student_by_hand
from tests.contracts.test_contract import apart, few
from tests.contracts.tiny import TINY, logits_of, random_teacher, verified

BY_HAND = [(family, name) for family, configs in TINY.items() for name in configs]


@cache
def by_hand(family: str, name: str) -> tuple[PreTrainedModel, AxisMap]:
    return random_teacher(TINY[family][name]), discover(TINY[family][name]).axis_map


#: One of each kind of attention and of head; the others repeat them in another class.
FIRST = ("llama-tied-biases", "mistral-window", "qwen3-tied")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, id=id, marks=[pytest.mark.slow] * (id not in FIRST))
        for case in BY_HAND
        for id in ["-".join(case)]
    ],
)
def test_it_computes_what_the_hand_made_one_computes(family: str, name: str) -> None:
    teacher, axis_map = by_hand(family, name)

    @few(6)
    @given(cuts(axis_map, axis_map.free))
    def holds(cut: Cut) -> None:
        simple = masked_teacher(teacher, axis_map.head_dim, cut.ranking, cut.architecture, cut.layers)
        with masked(teacher, axis_map, cut.ranking, cut.architecture, cut.layers) as oracle:
            assert distance(logits_of(oracle), logits_of(simple)) < TOLERANCE, cut
        assert apart(teacher, axis_map, cut) < TOLERANCE, cut

    holds()


def test_of_a_mixture_too() -> None:
    found = verified("mixtral")

    @few(6)
    @given(cuts(found.small, found.small.free))
    def holds(cut: Cut) -> None:
        simple = student_by_hand(found.model, cut.ranking, cut.architecture, cut.layers)
        with masked(found.model, found.small, cut.ranking, cut.architecture, cut.layers) as oracle:
            assert distance(logits_of(oracle), logits_of(simple)) < TOLERANCE, cut

    holds()


def test_nothing_dropped_is_the_teacher() -> None:
    teacher, axis_map = by_hand("qwen3", "tied")
    ranking = ranking_of(axis_map, 0)
    layers = layers_kept(axis_map, ranking, axis_map.teacher)
    with masked(teacher, axis_map, ranking, axis_map.teacher, layers) as oracle:
        assert torch.equal(logits_of(oracle), logits_of(teacher))


def test_the_teacher_is_left_as_it_was() -> None:
    found = verified("mixtral")
    before = logits_of(found.model)
    half = found.small.complete(
        {
            axis: found.small.teacher[axis] // 2
            for axis in found.small.free
            if axis not in ("heads", "kv_heads")
        }
    )
    with masked(found.model, found.small, ranking_of(found.small, 0), half, [0, 1]) as oracle:
        assert distance(logits_of(oracle), before) > 0.01
    assert torch.equal(logits_of(found.model), before)


def test_the_best_are_the_highest_and_the_first_of_equals() -> None:
    assert best_of([1.0, 3.0, 3.0, 2.0], 2) == {1, 2}
    assert best_of([1.0, 1.0, 1.0], 2) == {0, 1} == set(best([1.0, 1.0, 1.0], 2))


def test_entries_know_their_units_from_the_outermost_inwards() -> None:
    queries = PerUnit("kv_heads", 2, Concatenated((PerUnit("heads", 2, Fixed(1)), Fixed(1))))  # type: ignore[arg-type]
    assert list(entries(queries)) == [
        (("kv_heads", 0, 0), ("heads", 0, 0)),
        (("kv_heads", 0, 0), ("heads", 1, 0)),
        (("kv_heads", 0, 0),),
        (("kv_heads", 1, 0), ("heads", 0, 1)),
        (("kv_heads", 1, 0), ("heads", 1, 1)),
        (("kv_heads", 1, 0),),
    ]
