"""The study of nested training: whom it draws, what its tables say, and that its results are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.bench.results import Results
from studies.nested import __main__ as study
from studies.nested import work as runs
from studies.nested.pool import Pool
from tests.search.synthetic import demo_space

MEMBERS = demo_space().architectures[:13]


@given(st.integers(0, 9), st.integers(0, 40), st.integers(0, 40))
def test_everybody_is_drawn_once_before_anybody_comes_again(seed: int, begins: int, rounds: int) -> None:
    pool = Pool(MEMBERS, seed, begins)
    first = begins + rounds * len(MEMBERS)
    drawn = [pool.draw(first + place) for place in range(len(MEMBERS))]
    assert set(drawn) == set(MEMBERS)
    assert drawn == [Pool(MEMBERS, seed, begins).draw(first + place) for place in range(len(MEMBERS))]


def test_orders_differ_between_rounds_and_seeds() -> None:
    def order(seed: int, rounds: int) -> list[str]:
        size = len(MEMBERS)
        return [Pool(MEMBERS, seed).draw(rounds * size + place).label for place in range(size)]

    assert len({tuple(order(seed, rounds)) for seed in (0, 1) for rounds in (0, 1)}) == 4


def test_the_better_half_is_left_and_never_fewer_than_six() -> None:
    pool = Pool(MEMBERS, 0)
    losses = {one.label: float(place) for place, one in enumerate(reversed(MEMBERS))}
    pool.narrow(losses, 100)
    assert {one.label for one in pool.members} == {one.label for one in MEMBERS[-7:]}
    pool.narrow(losses, 200)
    pool.narrow(losses, 300)
    assert [one.label for one in pool.members] == [one.label for one in reversed(MEMBERS)][:6]
    assert {pool.draw(300 + place) for place in range(6)} == set(pool.members)


def test_the_tables_say_how_well_slices_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", runs.RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", results)
    final = {"a": 2.0, "b": 2.1, "c": 2.3}
    monkeypatch.setattr(study, "final_losses", lambda: final)
    for seed, losses in enumerate(({"a": 3.0, "b": 3.5, "c": 4.0}, {"a": 3.5, "b": 3.0, "c": 4.0})):
        results.add({"way": "one", "seed": seed, "tokens": 1000, "label": "", "losses": losses})
        best = min(losses, key=losses.__getitem__)
        results.add({"way": "one", "seed": seed, "tokens": 1000, "label": best, "loss": 1.9 + seed / 10})
    lines = study.tables().splitlines()
    assert "| 1,000 | 0.667 ± 0.471 | 0.050 ± 0.071 | 3.000 ± 0.000 |" in lines
    assert "Retrained 1.950 ± 0.071; from pruned weights 2.050 ± 0.071." in lines
