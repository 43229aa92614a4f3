"""The study of what foretells answers: its students, its table, and one small run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

from space.axes.architecture import Axis
from studies.answers import __main__ as study
from studies.answers import work as runs
from studies.answers.__main__ import PLANS, tables, tau_with_interval
from studies.bench.results import Results
from studies.bench.setting import EMBEDDED


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    found = Results(tmp_path / "results.jsonl", runs.RESULTS.key)
    monkeypatch.setattr(runs, "RESULTS", found)
    monkeypatch.setattr(study, "RESULTS", found)
    monkeypatch.setattr(study, "HERE", tmp_path)
    return found


@pytest.mark.parametrize("name", PLANS)
def test_students_differ_and_none_is_the_teacher(name: str) -> None:
    plan = PLANS[name]
    drawn = plan.architectures()
    assert drawn == plan.architectures()
    assert len({tuple(sizes.items()) for sizes in drawn}) == plan.students >= 12
    assert all(any(size < max(plan.sizes[axis]) for axis, size in sizes.items()) for sizes in drawn)


def test_tau_is_one_where_the_order_is_kept() -> None:
    low, tau, high = tau_with_interval(range(12), [value**3 for value in range(12)])
    assert [tau, high] == pytest.approx([1.0, 1.0])
    assert low == pytest.approx(1.0)
    assert np.isnan(tau_with_interval([1, 1, 1], [1, 2, 3])[1])


def test_the_interval_holds_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: of pairs without a connection, zero lies within the interval about 19 times in 20."""
    monkeypatch.setattr(study, "_DRAWS", 200)
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(20):
        low, _, high = tau_with_interval(generator.random(12).tolist(), generator.random(12).tolist())
        held += low <= 0 <= high
    assert held >= 16


def test_the_table_turns_what_is_better_below(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_DRAWS", 100)
    for place in range(6):
        early = {"loss": 3 - place / 10, "parameters": 10 + place, "kl@100": 1.0 - place / 10}
        early |= {"margin@100": place / 2, "accuracy@100": 0.5, "seconds@100": 2.0}
        results.add(
            {
                **{"teacher": "a teacher", "label": str(place), "seed": 0, "early": early},
                **{"short": 1, "long": 2},
                "distil_seconds": 40.0,
                "final": {"accuracy": 0.5 + place / 20},
                "of_teacher": {"accuracy": 0.9},
            }
        )
    text = tables()
    for name in ("loss", "kl@100", "margin@100"):
        assert f"| {name} | 1.00 | " in text
    assert "| margin@100 | 1.00 | 1.00 to 1.00 | 5.0% |" in text
    assert "| accuracy@100 | nan |" in text
    assert "6 students, 2,048 tokens and 4,096" in text
    assert "of the students 0.500 to 0.750" in text


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Whatever precision other tests of this process took."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_is_measured_once(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(
        PLANS[EMBEDDED.name],
        sizes={Axis.HIDDEN: (128, 80), Axis.LAYERS: (8,)},
        students=1,
        steps=(1, 2),
        judged=12,
    )
    monkeypatch.setattr(runs, "SAMPLES", (8,))
    runs.work(plan, 0, 1)
    [row] = results.rows()
    assert row["label"] == "hidden=80 layers=8"
    assert row["early"].keys() >= {"loss", "parameters", "margin@8", "accuracy@8", "kl@8", "seconds@8"}
    assert row["early"]["kl@8"] > 0
    assert row["final"]["loss"] < row["early"]["loss"]
    runs.work(plan, 0, 1)
    assert len(results.rows()) == 1
    assert study.main(["--table"]) == 0
    assert f"Accuracy of the teacher {row['of_teacher']['accuracy']:.3f}" in study.tables()
