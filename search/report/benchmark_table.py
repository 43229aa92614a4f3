"""The scores on downstream tasks as a table: a model a row, a task a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.runs.journeys import retrained_entries
from search.terminal import format as words

Entry = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One score."""

    text: str
    failure: str
    """Why there is none; empty if there is one."""


@dataclass(frozen=True)
class BenchmarkTable:
    """The scores of a run.

    Attributes:
        columns: task, and the name of its metric with an arrow to the better side.
        rows: kind, name and cells of the teacher, then of every model that was scored.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]


def benchmark_table(summary: dict[str, Any]) -> BenchmarkTable | None:
    """The table; None if no benchmark was asked for."""
    teacher, tasks = summary["teacher"], list(summary["teacher"]["benchmarks"])
    if not tasks:
        return None
    entries = [entry for _, entry in retrained_entries(summary) if entry["benchmarks"]]
    columns = [(task, metric(task, [teacher, *entries])) for task in tasks]
    rows = [("teacher", "teacher", _cells(teacher, tasks))]
    rows += [(_kind(summary, entry), entry["label"], _cells(entry, tasks)) for entry in entries]
    return BenchmarkTable(columns, rows)


def metric(task: str, entries: list[Entry]) -> str:
    """The metric of a task and where it is better, from whoever was scored: ``acc \u2191``."""
    scored = (one for entry in entries if (one := entry["benchmarks"].get(task)) and one["value"] is not None)
    if (found := next(scored, None)) is None:
        return ""
    return f"{found['metric']} {chr(0x2191) if found['higher_is_better'] else chr(0x2193)}"


def score(found: Entry | None) -> str:
    """A score with its standard error; a dash where there is none."""
    if found is None or found["value"] is None:
        return words.DASH
    error = found["error"]
    return words.nats(found["value"]) + (f" ± {words.nats(error)}" if error else "")


def _cells(entry: Entry, tasks: list[str]) -> list[Cell]:
    found = (entry["benchmarks"].get(task) for task in tasks)
    return [Cell(score(one), (one or {}).get("failure") or "") for one in found]


def _kind(summary: dict[str, Any], entry: Entry) -> str:
    if summary["chosen"] is not None and summary["chosen"]["label"] == entry["label"]:
        return "chosen"
    return "promoted" if entry in summary["promoted"] else "baseline"
