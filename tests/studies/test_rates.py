"""The study of rates reads its curves rightly, and runs at a toy size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.bench.results import Results
from studies.rates import __main__ as study
from studies.rates import work as runs
from studies.rates.fit import best_exponent, factor_found, length_exponent, mean_curve
from studies.rates.work import EXPONENTS, LENGTHS, SEEDS, Asked, curves_of, setting_of, work
from tests.small_search import write_stories, write_teacher


@given(st.floats(-1.9, 0.9), st.floats(0.01, 2))
def test_the_best_of_a_parabola_is_its_lowest_point(best: float, bend: float) -> None:
    curve = {key: 2 + bend * (key - best) ** 2 for key in EXPONENTS}
    assert best_exponent(curve) == pytest.approx(best)
    assert abs(factor_found(curve, before=math.inf) - best) <= 1


def test_at_an_edge_or_beside_a_divergence_the_best_is_a_rate_that_was_tried() -> None:
    assert best_exponent({-1: 1.0, 0: 2.0, 1: 3.0}) == -1
    assert best_exponent({-1: 2.0, 0: 1.0, 1: math.inf}) == 0


def test_where_no_rate_helps_the_lowest_of_all_is_left() -> None:
    assert factor_found({0: 5.0, -1: 4.9}, before=4.0) == -7


@given(st.floats(-1, 1), st.floats(-3, 3))
def test_a_power_law_of_the_length_is_recovered(power: float, start: float) -> None:
    best = {steps: start + power * math.log2(steps) for steps in LENGTHS}
    assert length_exponent(best) == pytest.approx(power, abs=1e-9)


def test_the_mean_is_over_rates_that_all_orders_have() -> None:
    assert mean_curve({0: {0: 1.0, 1: 2.0}, 1: {0: 2.0}}) == {0: 1.5}


def test_every_rate_is_run_at_every_length_and_the_rules_among_them() -> None:
    rows = Asked().rows_of("a")
    assert len(rows) == len(LENGTHS) * len(SEEDS) * 2 * len(EXPONENTS)
    assert 0 in EXPONENTS
    assert [row["steps"] for row in rows] == sorted(row["steps"] for row in rows), "the short ones come first"


def test_the_tables_say_what_the_rates_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", runs.RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", results)
    for about in Asked(lengths=(16, 64), bases=("weighted",)).rows_of("a"):
        best = -0.5 if about["steps"] == 16 else -1.5
        loss = 3 + 0.25 * (about["exponent"] - best) ** 2 + about["seed"] / 8
        after = None if about["exponent"] == 2 else loss
        results.add({**about, "parameters": 1000, "rule": 0.004, "before": 5.0, "after": after})
    lines = study.tables().splitlines()
    assert "## a, weighted, uniform, steps of 2048 tokens, 1,000 parameters" in lines
    assert "The rule's rate is 4.00e-03; straight after pruning 5.000." in lines
    assert "| 4 | diverged | diverged |" in lines
    assert "| 1 | 3.188 ± 0.125 | 3.688 ± 0.125 |" in lines
    assert "| best | 0.71 | 0.35 |" in lines
    assert "| found | 0.000 ± 0.000 | 0.000 ± 0.000 |" in lines, "of equal losses the rule is taken"
    assert "| a, weighted, uniform, steps of 2048 tokens | -0.50 |" in lines


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["coordinate", "weighted"])
def test_it_runs_on_a_teacher_of_ones_own(
    basis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    results = Results(tmp_path / "results.jsonl", runs.RESULTS.key)
    monkeypatch.setattr(runs, "RESULTS", results)
    setting = replace(setting_of(str(tmp_path / "teacher"), str(tmp_path / "stories.txt")), block=64)
    monkeypatch.setattr(runs, "setting_of", lambda *_: replace(setting, precision="no"))
    asked = Asked(lengths=(1,), exponents=(0, 1), seeds=(0,), bases=(basis,))
    work("teacher", None, asked, threads=1)
    work("teacher", None, asked, threads=1)
    rows = results.rows()
    assert [row["exponent"] for row in rows] == [0, 1], "a run that is done is not repeated"
    assert len({row["before"] for row in rows}) == 1, "every training begins with the same student"
    assert rows[0]["after"] != rows[1]["after"]
    assert {*curves_of(rows)[1][0]} == {0, 1}


def test_a_directory_needs_a_text() -> None:
    with pytest.raises(ValueError, match="needs a text"):
        setting_of("somewhere", None)
