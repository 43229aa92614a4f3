from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from space.axes.layers import layers_of_each_kind
from space.cutting.ranking import kept_layers
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


@given(kinds_of_layers, st.data())
def test_the_cheapest_block_goes_that_leaves_every_kind_its_share(
    kinds: list[int], data: st.DataObject
) -> None:
    """Beside going through all blocks; if none leaves the shares, single layers go by their scores."""
    count = len(kinds)
    costs = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    blocks = torch.tensor(data.draw(st.lists(costs, min_size=count, max_size=count))).float()
    layers = data.draw(st.integers(1, count))
    found = kept_layers(blocks[0], layers, kinds, blocks)
    share = layers_of_each_kind(kinds, layers)
    fair: dict[tuple[int, ...], float] = {}
    for start in range(layers + 1) if layers < count else ():
        left = [n for n in range(count) if not start <= n < start + count - layers]
        if Counter(kinds[n] for n in left) == Counter(share):
            fair[tuple(left)] = float(blocks[count - layers - 1, start])
    if fair:
        assert fair[tuple(found)] == min(fair.values())
    else:
        assert found == kept_layers(blocks[0], layers, kinds)


def test_a_block_of_another_kind_is_left_alone_however_cheap() -> None:
    blocks = torch.tensor([[1.0, 9.0, 0.0, 5.0], [9.0, 4.0, 3.0, torch.inf]])
    assert kept_layers(blocks[0], 3, [0, 0, 1, 0], blocks) == [1, 2, 3]
    assert kept_layers(blocks[0], 2, [0, 0, 0, 0], blocks) == [0, 1]
    assert kept_layers(blocks[0], 2, [0, 1, 0, 1], blocks) == [0, 1]
    assert kept_layers(blocks[0], 2, [0, 0, 1, 1], blocks) == [0, 3]
