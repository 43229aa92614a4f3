"""What a user reads of bounds: who is over one, and by how much the nearest missed them."""

from __future__ import annotations

from typing import Any

from search.settings.bounds import excess_in_words, in_words, told


def bounds_of(summary: dict[str, Any]) -> dict[str, float]:
    """The bounds by objective, in its unit."""
    return {bound["name"]: bound["most"] for bound in summary["bounds"]}


def over_labels(summary: dict[str, Any]) -> set[str]:
    """Architectures that were found over a bound."""
    return {trial["label"] for trial in summary["trials"] if trial.get("over")}


def over_in_words(trial: dict[str, Any]) -> str:
    """Such as ``over the bound: latency by 3.1 ms``; empty within the bounds."""
    return excess_in_words(trial.get("over") or {})


def unmet(summary: dict[str, Any]) -> str:
    """That no candidate lies within the bounds, and which is the nearest; empty if it is not so."""
    bounds = bounds_of(summary)
    seen = [trial for trial in summary["trials"] if trial["state"] != "failed"]
    if not seen or not all(trial.get("over") for trial in seen):
        return ""
    nearest = min(seen, key=lambda trial: max(trial["over"][name] / bounds[name] for name in trial["over"]))
    reached = " and ".join(
        f"{told(name, bounds[name] + amount)} of {name}" for name, amount in nearest["over"].items()
    )
    return f"No candidate lies within {in_words(bounds)}; the nearest, {nearest['label']}, has {reached}"
