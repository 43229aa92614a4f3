"""What the report shows of tasks: what the chosen model keeps, and a panel for each of many."""

from __future__ import annotations

from typing import Any

import pytest

from search.report.document import report_html
from search.report.figures.kept import fields_left_out, kept_figure, kept_in_words, kept_rows
from search.report.figures.tasks import task_panels
from search.runs.summary import check
from tests.search.report.variants import VARIANTS


def _with_kept() -> dict[str, Any]:
    """A chosen model scored by example on two tasks, of which one has fields."""
    summary = VARIANTS["sample_summary"]()
    plain = {"metric": "acc", "higher_is_better": True, "failure": None, "margin": 1.0}
    whole = {**plain, "value": 0.6, "error": 0.01, "examples": 900, "kept": 0.75, "kept_error": 0.02}
    part = {"value": 0.5, "error": 0.02, "examples": 300, "kept": 0.625, "kept_error": 0.04}
    blank = {**part, "kept": None, "kept_error": None}
    student = next(one for one in summary["promoted"] if one["label"] == summary["chosen"]["label"])
    student["benchmarks"] = {
        "blimp": {**whole, "fields": {"syntax": part, "nothing": blank}},
        "quiz": {**whole, "kept": 0.9, "fields": {}},
        "riddle": {"metric": "f1", "value": 0.5, "error": None, "higher_is_better": True, "failure": None},
    }
    summary["teacher"]["benchmarks"] = {
        "blimp": {**whole, "value": 0.8, "kept": 1.0, "kept_error": 0.0, "fields": {}}
    }
    return summary


def test_what_is_kept_has_a_row_for_each_task_and_field() -> None:
    summary = _with_kept()
    check(summary)
    rows = kept_rows(summary)
    assert [(row.name, row.is_task) for row in rows] == [("blimp", True), ("syntax", False), ("quiz", True)]
    assert (rows[1].student, rows[1].teacher) == (0.5, 0.8)
    figure = kept_figure(summary)
    assert figure is not None
    bars, points = figure.traces
    assert points["x"] == [0.75, 0.625, 0.9]
    assert bars["x"][:2] == pytest.approx([0.75 - 0.04, 0.75 + 0.04]), "two standard errors each way"
    assert kept_in_words(summary) == (
        "It keeps 75% ± 2% of the teacher’s accuracy on blimp, 90% ± 2% on quiz."
    )


@pytest.mark.parametrize("variant", ["sample_summary", "nothing_evaluated"])
def test_without_examples_nothing_is_said_of_them(variant: str) -> None:
    summary = VARIANTS[variant]()
    assert kept_figure(summary) is None
    assert kept_in_words(summary) == ""


def test_of_many_fields_those_that_keep_least_have_a_row() -> None:
    summary = _with_kept()
    student = next(one for one in summary["promoted"] if one["label"] == summary["chosen"]["label"])
    part = student["benchmarks"]["blimp"]["fields"]["syntax"]
    student["benchmarks"]["blimp"]["fields"] = {
        f"field {number:02}": {**part, "kept": (number * 7 % 60) / 60} for number in range(60)
    }
    shown = {row.name for row in kept_rows(summary) if not row.is_task}
    least = sorted(range(60), key=lambda number: number * 7 % 60)[:38]
    assert shown == {f"field {number:02}" for number in least}
    assert {"blimp", "quiz"} <= {row.name for row in kept_rows(summary)}
    assert fields_left_out(summary) == 22
    assert "22 fields of which more is kept are in" in report_html(summary, None)


def _with_tasks(number: int) -> dict[str, Any]:
    """All retrained models scored on several tasks; the second task of the first baseline failed."""
    summary = VARIANTS["sample_summary"]()
    plain = {"metric": "acc", "higher_is_better": True, "failure": None}
    entries = [summary["teacher"], *summary["promoted"], *summary["baselines"]]
    for place, entry in enumerate(entries):
        entry["benchmarks"] = {
            f"task {task}": {**plain, "value": 0.8 - place / 50 - task / 100, "error": 0.01}
            for task in range(number)
        }
    failed = {"metric": None, "value": None, "error": None, "higher_is_better": None, "failure": "no data"}
    summary["baselines"][0]["benchmarks"]["task 1"] = failed
    return summary


def test_many_tasks_have_a_panel_each_with_every_model_and_the_teacher() -> None:
    summary = _with_tasks(5)
    check(summary)
    panels = task_panels(summary)
    assert [(panel.title, panel.metric) for panel in panels] == [(f"task {n}", "acc ↑") for n in range(5)]
    for number, panel in enumerate(panels):
        bars, points = panel.figure.traces
        first = points["x"][0]
        assert bars["x"][:2] == pytest.approx([first - 0.02, first + 0.02]), "two standard errors each way"
        assert panel.figure.layout["shapes"][0]["x0"] == pytest.approx(0.8 - number / 100)
        assert panel.figure.layout["yaxis"]["ticktext"][0] == summary["chosen"]["label"]
        assert points["marker"]["color"][0] == "@accent"
        assert "@accent" not in points["marker"]["color"][1:]
    counts = [len(panel.figure.traces[1]["x"]) for panel in panels]
    assert counts[1] == counts[0] - 1, "what failed has no mark"
    assert "Task by task" in report_html(summary, None)


def test_few_tasks_are_a_table_alone() -> None:
    assert task_panels(_with_tasks(3)) == []
    assert "Task by task" not in report_html(_with_tasks(3), None)


def test_a_page_shows_what_is_kept() -> None:
    html = report_html(_with_kept(), None)
    assert "What the chosen model keeps of the teacher’s answers" in html
    assert "It keeps 75% ± 2% of the teacher’s accuracy on blimp" in html
