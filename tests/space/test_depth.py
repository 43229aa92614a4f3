from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from space.depth import kept_layers, layers_of_each_kind
from tests.contracts.masked import best

kinds_of_layers = st.lists(st.integers(0, 3), min_size=1, max_size=24)


def shares(kinds: list[int]) -> list[dict[int, int]]:
    return [layers_of_each_kind(kinds, layers) for layers in range(1, len(kinds) + 1)]


@given(kinds_of_layers)
def test_each_kind_has_its_share_and_all_together_are_asked_for(kinds: list[int]) -> None:
    whole = Counter(kinds)
    for layers, kept in enumerate(shares(kinds), start=1):
        assert sum(kept.values()) == layers
        assert all(0 <= kept[kind] <= whole[kind] for kind in whole)
        assert layers < len(whole) or all(kept.values()), "no kind dies out before it has to"
    assert shares(kinds)[-1] == whole


@given(kinds_of_layers)
def test_no_layer_is_taken_back_as_the_total_grows(kinds: list[int]) -> None:
    found = shares(kinds)
    for few, more in pairwise(found):
        assert all(few[kind] <= more[kind] for kind in few)


@given(kinds_of_layers)
def test_no_kind_is_more_than_a_layer_above_its_share(kinds: list[int]) -> None:
    """Adams's rule rounds up: with quota q, at most ⌈q⌉ where every kind has one."""
    whole = Counter(kinds)
    for layers, kept in enumerate(shares(kinds), start=1):
        for kind in whole:
            assert kept[kind] <= max(1, -(-layers * whole[kind] // len(kinds)))


def test_a_known_division() -> None:
    """Nine of one kind and three of another: three to one, the rarer rounded up."""
    kinds = [0, 0, 0, 1] * 3
    assert [tuple(kept.values()) for kept in shares(kinds)[:6]] == [
        (1, 0),
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (4, 2),
    ]


@given(kinds_of_layers, st.data())
def test_the_best_of_each_kind_are_kept_in_order(kinds: list[int], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(0, 3), min_size=len(kinds), max_size=len(kinds)))
    layers = data.draw(st.integers(1, len(kinds)))
    found = kept_layers(torch.tensor(scores).float(), layers, kinds)
    assert found == sorted(set(found))
    for kind, count in layers_of_each_kind(kinds, layers).items():
        places = [place for place, other in enumerate(kinds) if other == kind]
        chosen = [places[n] for n in best([scores[place] for place in places], count)]
        assert [place for place in found if kinds[place] == kind] == sorted(chosen)


def test_with_one_kind_only_scores_count() -> None:
    assert kept_layers(torch.tensor([0.1, 3.0, 2.0, 0.5]), 2, [0] * 4) == [1, 2]
