"""Ranks and crowding against their definitions and against Optuna's own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance
from optuna.study._multi_objective import _fast_non_domination_rank, _is_pareto_front
from optuna.trial import create_trial

from search.rungs.bracket import Values, best_first, crowding_distance, dominates, pareto_front, pareto_ranks

#: Few different values, so that ties and duplicates are the rule.
TABLES = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)
#: No two candidates share a value.
UNTIED = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.floats(-1e6, 1e6, width=32), unique=True)
)


def is_better(one: Values, other: Values) -> bool:
    """Dominance, word by word."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(
        a < b for a, b in zip(one, other, strict=True)
    )


def peeled(values: Values) -> list[int]:
    """Ranks by taking away one front after the other."""
    ranks: dict[int, int] = {}
    for rank in itertools.count():
        left = [i for i in range(len(values)) if i not in ranks]
        if not left:
            return [ranks[i] for i in range(len(values))]
        front = [i for i in left if not any(is_better(values[j], values[i]) for j in left)]
        ranks |= dict.fromkeys(front, rank)
    raise AssertionError


def summed_gaps(values: Values) -> list[float]:
    """Crowding distance from the definition, for values of which no two are alike."""
    distances = []
    for row in values:
        total = 0.0
        for column, mine in zip(values.T, row, strict=True):
            below, above = column[column < mine], column[column > mine]
            if not (len(below) and len(above)):
                total = math.inf
            else:
                total += (above.min() - below.max()) / (column.max() - column.min())
        distances.append(total)
    return distances


@given(TABLES)
def test_dominance_is_that_of_the_definition(values: Values) -> None:
    expected = [[is_better(one, other) for other in values] for one in values]
    assert dominates(values).tolist() == expected


@given(TABLES)
def test_ranks_are_those_of_the_definition_and_of_optuna(values: Values) -> None:
    assert pareto_ranks(values).tolist() == peeled(values)
    assert pareto_ranks(values).tolist() == _fast_non_domination_rank(values).tolist()


@given(UNTIED)
def test_crowding_is_that_of_the_definition_and_of_optuna(values: Values) -> None:
    assert crowding_distance(values).tolist() == pytest.approx(summed_gaps(values))
    if len(values) > 1:  # one alone is at both ends here, and at none for Optuna
        trials = [create_trial(values=row.tolist()) for row in values]
        for number, trial in enumerate(trials):
            trial.number = number
        optunas = _calc_crowding_distance(list(trials))
        assert crowding_distance(values).tolist() == pytest.approx([optunas[i] for i in range(len(values))])


@given(TABLES)
def test_crowding_of_duplicates_is_a_number(values: Values) -> None:
    distances = crowding_distance(values)
    assert not np.isnan(distances).any()
    assert (distances >= 0).all()
    for column in values.T:
        assert np.isinf(distances[column == column.min()]).any(), "an end of each objective stands out"
        assert np.isinf(distances[column == column.max()]).any()


def test_crowding_by_hand() -> None:
    assert crowding_distance(np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])).tolist() == [
        math.inf,
        2.0,
        math.inf,
    ]


@given(TABLES)
def test_best_first_orders_everybody_by_front(values: Values) -> None:
    order, ranks = best_first(values.tolist()), pareto_ranks(values)
    assert sorted(order) == list(range(len(values)))
    assert ranks[order].tolist() == sorted(ranks.tolist())
    assert values[order[0], 0] == values[:, 0].min(), "the best loss is the first to go up"


@given(TABLES)
def test_the_front_is_optunas_by_loss(values: Values) -> None:
    front = pareto_front(values.tolist())
    assert sorted(front) == np.flatnonzero(_is_pareto_front(values, assume_unique_lexsorted=False)).tolist()
    assert values[front, 0].tolist() == sorted(values[front, 0].tolist())


def test_with_loss_alone_best_first_sorts() -> None:
    assert best_first([[2.0], [1.0], [3.0], [1.0]]) == [1, 3, 0, 2]


def test_nobody_to_promote() -> None:
    assert best_first([]) == []
    assert pareto_front([]) == []
