"""What the terminal prints about a run: teacher and search space before it, models and report after it."""

from __future__ import annotations

import json
from typing import Any

from search.runs.summary import over_labels, unmet
from search.settings.resolved import Resolved
from search.settings.scale import scale_for
from search.settings.teachers import teachers_in_words
from search.storage.run_directory import RunDirectory

#: Entries of a model in the summary that the printed result leaves out.
_LONG = ("curve", "phases", "passed_over", "correction")


def opening_line(resolved: Resolved) -> str:
    """Return one line: the teacher, why it was taken if there were others, and the search space."""
    config, space = resolved.config, resolved.space
    others = resolved.passed_over
    passed_over = teachers_in_words(others, space.budget) if others else ""
    why = f", the nearest above the budget; passed over: {passed_over}" if others else ""
    taught = f", taught by {config.taught_by}" if config.taught_by else ""
    return (
        f"{config.teacher}: {resolved.teacher_parameters:,} parameters{why}; "
        f"{len(space)} architectures near {space.budget}{taught} (--model and --budget choose others)"
    )


def hours_line(resolved: Resolved) -> str:
    """Return one line about amounts that follow from hours, beside those of the teacher's size."""
    config, scale = resolved.config, scale_for(resolved.teacher_parameters)
    usual = scale.search_tokens + scale.promote * scale.retrain_tokens
    trained = config.search_tokens + resolved.retraining_tokens
    return (
        f"planned for {config.hours:g} hours on this device: {trained:,} tokens of training, where a teacher "
        f"of this size usually takes {usual:,} (--hours changes it)"
    )


def chosen_row(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary's row of the chosen model; None if no model could be retrained."""
    if summary["chosen"] is None:
        return None
    rows = {row["label"]: row for row in (*summary["baselines"], *summary["promoted"]) if row["path"]}
    found: dict[str, Any] = rows[summary["chosen"]["label"]]
    return found


def result_text(summary: dict[str, Any], directory: RunDirectory) -> str:
    """Return the result as a few lines of text."""
    chosen = chosen_row(summary)
    if chosen is None:
        return f"{unmet(summary) or 'No model could be retrained'}; see {directory.report}"
    lines = [
        f"chosen   {chosen['label']}  {chosen['parameters']:,} parameters  loss {chosen['loss']:.4f}",
        f"         {directory.path / chosen['path']}",
        f"         {summary['chosen']['reason']}",
        f"teacher  {summary['teacher']['parameters']:,} parameters  loss {summary['teacher']['loss']:.4f}",
    ]
    for row in summary["baselines"]:
        loss = "failed" if row["loss"] is None else f"{row['loss']:.4f}"
        over = ", over the bound" if row["label"] in over_labels(summary) else ""
        after = f" after {row['tokens']:,} tokens" if row.get("short") else ""
        lines.append(f"{row['origin']:<15} {row['label']}  loss {loss}{after}{over}")
    return "\n".join([*lines, f"report   {directory.report}"])


def result_as_dict(summary: dict[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """Return the result for programs: models and paths; ``summary`` is the path of the file with the rest."""

    def row(entry: dict[str, Any]) -> dict[str, Any]:
        place = {"path": str(directory.path / entry["path"])} if entry.get("path") else {}
        return {name: value for name, value in entry.items() if name not in _LONG} | place

    chosen = chosen_row(summary)
    return {
        "run": summary["name"],
        "chosen": row(chosen) | {"reason": summary["chosen"]["reason"]} if chosen else None,
        "unmet": unmet(summary) or None,
        "teacher": row(summary["teacher"]),
        "promoted": [row(entry) for entry in summary["promoted"]],
        "baselines": [row(entry) for entry in summary["baselines"]],
        "directory": str(directory.path),
        "report": str(directory.report),
        "summary": str(directory.summary),
    }


def as_json_line(found: Any) -> str:
    """Encode as one line of JSON."""
    return json.dumps(found, ensure_ascii=False, allow_nan=False)
