"""What the terminal says of a run: before it teacher and space, after it the models and the report."""

from __future__ import annotations

from typing import Any

from search.nearest import told
from search.report.within_bounds import over_labels, unmet
from search.resolution import Resolved
from search.run_directory import RunDirectory


def beginning(resolved: Resolved) -> str:
    """The teacher, why it was taken if there were others, and the space, on one line."""
    config, space = resolved.config, resolved.space
    others = resolved.passed_over
    why = f", the nearest above the budget; passed over: {told(others, space.budget)}" if others else ""
    taught = f", taught by {config.taught_by}" if config.taught_by else ""
    return (
        f"{config.teacher}: {resolved.teacher_parameters:,} parameters{why}; "
        f"{len(space)} architectures near {space.budget}{taught} (--model and --budget choose others)"
    )


def chosen_row(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the chosen model, whose weights lie at its path; None if no model could be retrained."""
    if summary["chosen"] is None:
        return None
    rows = {row["label"]: row for row in (*summary["baselines"], *summary["promoted"]) if row["path"]}
    found: dict[str, Any] = rows[summary["chosen"]["label"]]
    return found


def outcome(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The result in a few lines."""
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
        lines.append(f"{row['origin']:<15} {row['label']}  loss {loss}{over}")
    return "\n".join([*lines, f"report   {directory.report}"])
