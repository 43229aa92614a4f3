"""Who is retrained: by turns the lowest loss and the Pareto-best, nobody twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search.rungs.bracket import best_first
from search.rungs.evaluation import SEARCH, Evaluation, FinishedTrial
from search.stages.retraining import promoted_of
from tests.search.synthetic import demo_space, run_config

SPACE = demo_space().architectures
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


def records(points: list[tuple[int, int]]) -> list[FinishedTrial]:
    return [
        FinishedTrial(
            1, place, SPACE[place], SEARCH, Evaluation({"loss": float(x), "latency": float(y)}), None
        )
        for place, (x, y) in enumerate(points)
    ]


def test_by_turns() -> None:
    """On a front of four the ends come first by crowding, and the second lowest loss has its turn before."""
    points = [(1, 9), (2, 8), (3, 3), (9, 1), (4, 9)]
    found = promoted_of(records(points), run_config(promote=4))
    assert best_first(points)[:2] == [0, 3]
    assert [record.number for record in found] == [0, 1, 3, 2]


@given(POINTS, st.integers(1, 25))
def test_as_many_as_asked_the_lowest_loss_among_them(points: list[tuple[int, int]], promote: int) -> None:
    found = promoted_of(records(points), run_config(promote=promote))
    numbers = [record.number for record in found]
    assert len(numbers) == len(set(numbers)) == min(promote, len(points))
    losses = sorted(x for x, _ in points)
    chosen = sorted(points[number][0] for number in numbers)
    half = -(-len(numbers) // 2)
    assert chosen[: half - half // 2] == losses[: half - half // 2]


@given(POINTS)
def test_of_one_objective_the_order_is_that_of_the_loss(points: list[tuple[int, int]]) -> None:
    found = promoted_of(records(points), run_config(objectives=("loss",), promote=5))
    assert [record.values(("loss",))[0] for record in found] == sorted(x for x, _ in points)[:5]
