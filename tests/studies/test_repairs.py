"""The study of repairs: each way is measured once, and the tables say what was."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.bench.results import Results
from studies.repairs import __main__ as study
from studies.repairs.__main__ import described
from studies.repairs.subject import Way
from tests.small_search import write_stories, write_teacher


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    found = Results(tmp_path / "results.jsonl", study.RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", found)
    return found


def test_a_small_teacher_is_measured_once(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    monkeypatch.setattr("studies.repairs.subject._VALIDATION_TOKENS", 512)
    monkeypatch.setattr(study, "RIDGES", (1e-4,))
    monkeypatch.setattr(study, "_COMPARED", (None,))
    study.work(str(tmp_path / "teacher"), str(tmp_path / "stories.txt"), 256)
    rows = results.rows()
    assert len(rows) == 3 + 3 * (2 + 2), "three students as they are, and repaired"
    by_way = {(r["student"], r["ridge"], r["precision"]): r["loss"] for r in rows}
    for student in study.STUDENTS:
        exact, rounded = (by_way[student, "chosen", precision] for precision in ("float64", "float32"))
        assert rounded == pytest.approx(exact, abs=1e-4)
    monkeypatch.setattr(study, "Subject", None)
    study.work(str(tmp_path / "teacher"), str(tmp_path / "stories.txt"), 256)
    assert len(results.rows()) == len(rows)


def test_tables_hold_the_losses_and_what_precision_changes(results: Results) -> None:
    plain = {"label": "h4", "whole": 1.0, "loss": 3.0}
    results.add({**described("t", "uniform", 0, None), **plain})
    results.add({**described("t", "uniform", 256, Way(None)), "loss": 2.5})
    results.add({**described("t", "uniform", 256, Way(None, "bfloat16")), "loss": 2.75})
    text = study.tables()
    assert "## t, uniform: h4" in text
    assert "The teacher is at 1.000, the student without a repair at 3.000." in text
    line = text.strip().splitlines()[-1]
    assert line.startswith("| 256 |")
    assert "| 2.500 |" in line
    assert line.endswith("| +0.2500 |")
