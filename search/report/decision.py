"""The first section of the report: the model to take, its cost against the teacher, and why not another."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from search.runs.summary import cost_axis, farthest_near, unmet
from search.runs.trajectories import HAND_MADE, chosen_student, retrained_entries, top_rung, trajectories
from search.terminal import format as words

Entry = dict[str, Any]


@dataclass(frozen=True)
class Tile:
    """A figure of the chosen model beside the teacher's, with a note that compares the two."""

    name: str
    value: str
    unit: str
    teacher: str
    note: str


@dataclass(frozen=True)
class Step:
    """A row of the comparison by loss; ``gap`` is in nats above the teacher, ``bar`` a length from 0 to 1."""

    name: str
    label: str
    kind: str
    loss: float
    gap: float
    bar: float
    clipped: bool


@dataclass(frozen=True)
class Decision:
    """The first section of the report.

    Attributes:
        student: entry of the chosen model; None if there is none.
        headline: a sentence on what the chosen model keeps and loses.
        tiles: figures of the chosen model beside the teacher's.
        steps: all retrained models by loss.
        verdict: a sentence that compares the chosen model with the baselines.
        runner_up: entry of the next best promoted model; None if there is none.
        why_not: why the runner-up was not chosen.
        leader: a sentence on the best candidate of the top rung, if no model was chosen.
        unmet: a sentence saying that no candidate lies within the bounds, if so.
        failures: the most frequent reasons for failure with their counts.
    """

    student: Entry | None
    headline: str
    tiles: list[Tile]
    steps: list[Step]
    verdict: str
    runner_up: Entry | None
    why_not: str
    leader: str
    unmet: str
    failures: list[tuple[str, int]]


def decide(summary: dict[str, Any]) -> Decision:
    """Return the decision section for a summary."""
    student, teacher = chosen_student(summary), summary["teacher"]
    runner_up = _runner_up(summary, student)
    return Decision(
        student=student,
        headline=_headline(student, teacher) if student else "",
        tiles=_tiles(summary, student) if student else [],
        steps=_steps(summary, student),
        verdict=_verdict(summary, student) if student else "",
        runner_up=runner_up,
        why_not=_why_not(student, runner_up) if student and runner_up else "",
        leader="" if student else _leader(summary),
        unmet="" if student else unmet(summary),
        failures=_failures(summary),
    )


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of


def _difference(value: float | None, of: float | None) -> float | None:
    return None if value is None or of is None else value - of


def _perplexity_gap(student: Entry, teacher: Entry) -> float | None:
    """Return the difference in perplexity; None if the loss is missing or above 7 nats."""
    if student["loss"] is None or student["loss"] > 7:
        return None
    return math.exp(student["loss"]) - math.exp(teacher["loss"])


def _headline(student: Entry, teacher: Entry) -> str:
    share = words.percent(student["parameters"] / teacher["parameters"])
    kept = f"It keeps {share} of the teacher\u2019s parameters"
    speed = _ratio(teacher["latency_ms"], student["latency_ms"])
    if speed is not None and speed >= 1.005:
        kept += f", runs {speed:.2f} times as fast"
    elif speed is not None:
        kept += f", takes {1 / speed:.2f} times as long"
    gap = _difference(student["loss"], teacher["loss"])
    if gap is None:
        return f"{kept}."
    verb = "gives up" if gap >= 0 else "gains"
    return (
        f"{kept} and {verb} {words.nats(abs(gap))} nats per token: perplexity "
        f"{words.perplexity(student['loss'])} where the teacher has {words.perplexity(teacher['loss'])}."
    )


def _tiles(summary: dict[str, Any], student: Entry) -> list[Tile]:
    teacher = summary["teacher"]
    latency = _ratio(student["latency_ms"], teacher["latency_ms"])
    found = [
        _size_tile(student, teacher),
        _tile("Loss", student, teacher, "loss", "nats/token"),
        Tile(
            name="Perplexity",
            value=words.perplexity(student["loss"]),
            unit="per token",
            teacher=words.perplexity(teacher["loss"]),
            note=words.signed(_perplexity_gap(student, teacher), 2),
        ),
    ]
    if student["latency_ms"] is not None:
        found.append(
            Tile(
                name="Latency",
                value=words.milliseconds(student["latency_ms"]),
                unit="ms",
                teacher=words.milliseconds(teacher["latency_ms"]),
                note=words.percent(latency) if latency else "",
            )
        )
    if student["bits_per_byte"] is not None:
        found.append(_tile("Bits per byte", student, teacher, "bits_per_byte", "bits/byte"))
    return [*found, *_other_objective(summary, student)]


def _size_tile(student: Entry, teacher: Entry) -> Tile:
    share = words.percent(student["parameters"] / teacher["parameters"])
    value, _, unit = words.count(student["parameters"]).partition(words.NO_BREAK_SPACE)
    return Tile("Parameters", value, unit, words.count(teacher["parameters"]), share)


def _tile(name: str, student: Entry, teacher: Entry, key: str, unit: str) -> Tile:
    note = words.signed(_difference(student[key], teacher[key]))
    return Tile(name, words.nats(student[key]), unit, words.nats(teacher[key]), note)


def _other_objective(summary: dict[str, Any], student: Entry) -> list[Tile]:
    """Return a tile for the second objective, unless it has one already."""
    cost = cost_axis(summary)
    value, teacher = cost.of(student), cost.of(summary["teacher"])
    if cost.name in ("latency", "latency_ms", "parameters") or value is None or value < 0:
        return []  # a margin with its sign turned says little; what is kept of a task is in the headline
    share = _ratio(value, teacher)
    note = words.percent(share) if share else ""
    name = cost.name[0].upper() + cost.name[1:]
    return [Tile(name, words.quantity(value), cost.unit, words.quantity(teacher), note)]


def _steps(summary: dict[str, Any], student: Entry | None) -> list[Step]:
    """Return every retrained model, lowest loss first; bars that would dwarf the others are clipped."""
    entries = [
        (promoted, entry) for promoted, entry in retrained_entries(summary) if entry["loss"] is not None
    ]
    teacher = summary["teacher"]["loss"]
    widest = 1.3 * max(1e-9, farthest_near((entry["loss"] for _, entry in entries), teacher) - teacher)
    return [
        Step(
            name=_name(entry, entry is student) + _on_fewer_tokens(entry),
            label=entry["label"],
            kind="chosen" if entry is student else "promoted" if promoted else "baseline",
            loss=entry["loss"],
            gap=entry["loss"] - teacher,
            bar=min(1.0, max(0.0, (entry["loss"] - teacher) / widest)),
            clipped=entry["loss"] - teacher > widest,
        )
        for promoted, entry in sorted(entries, key=lambda found: float(found[1]["loss"]))
    ]


def _name(entry: Entry, is_chosen: bool) -> str:
    if entry["origin"] == "search":
        return "chosen" if is_chosen else "promoted"
    return f"chosen: {words.origin(entry['origin'])}" if is_chosen else words.origin(entry["origin"])


def _on_fewer_tokens(entry: Entry) -> str:
    return f", after {words.count(entry['tokens'])} tokens" if entry.get("short") else ""


def _verdict(summary: dict[str, Any], student: Entry) -> str:
    others = [entry for _, entry in retrained_entries(summary) if entry is not student]
    others = [entry for entry in others if entry["loss"] is not None]
    if student["origin"] in HAND_MADE:
        return _baseline_verdict(student, [one for one in others if one["origin"] == "search"])
    made = [one for one in others if one["origin"] in HAND_MADE]
    rivals = [one for one in made if not one.get("short")] or made
    if not rivals or student["loss"] is None:
        return "No baseline was retrained, so nothing can be said about what the search has gained."
    better = [one for one in made if one["loss"] <= student["loss"]]
    if better:
        tokens = "" if any(one.get("short") for one in better) else " on the same tokens"
        named = " and ".join(
            f"{words.origin(one['origin'])} ({words.signed(one['loss'] - student['loss'])})" for one in better
        )
        return f"It does not beat every baseline: {named} reached a loss as low{tokens}."
    nearest = min(rivals, key=lambda one: float(one["loss"]))
    margin = words.nats(nearest["loss"] - student["loss"])
    against = "the one baseline" if len(made) == 1 else f"all {len(made)} baselines"
    fewer = "; ".join(words.origin(one["origin"]) for one in made if one.get("short"))
    tokens = " retrained on the same tokens"
    if fewer:
        tokens = f" (on a quarter of its tokens: {fewer})"
    second = words.origin(nearest["origin"])
    return f"It beats {against}{tokens}; the nearest, {second}, is {margin} nats behind."


def _baseline_verdict(student: Entry, searched: list[Entry]) -> str:
    """Return the verdict for a chosen model that is itself a hand-made baseline."""
    itself = f"It is itself a hand-made baseline, {words.origin(student['origin'])}"
    if not searched:
        return f"{itself}; no model that the search proposed was retrained."
    best = min(searched, key=lambda one: float(one["loss"]))
    gap = best["loss"] - student["loss"]
    place = f"{words.nats(abs(gap))} nats {'behind' if gap >= 0 else 'ahead'}"
    return f"{itself}; the best that the search proposed, {best['label']}, is {place}."


def _runner_up(summary: dict[str, Any], student: Entry | None) -> Entry | None:
    others = [one for one in summary["promoted"] if one is not student and one["loss"] is not None]
    return min(others, key=lambda one: float(one["loss"]), default=None)


def _why_not(student: Entry, other: Entry) -> str:
    """Compare loss and latency of the runner-up with those of the chosen model, in a sentence."""
    gap = _difference(other["loss"], student["loss"]) or 0.0
    alike = abs(gap) < 0.0005
    direction = "higher" if gap > 0 else "lower"
    losses = "Its loss is the same" if alike else f"Its loss is {words.nats(abs(gap))} nats {direction}"
    slower = _ratio(other["latency_ms"], student["latency_ms"])
    if slower is None:
        return f"{losses}."
    if abs(slower - 1) < 0.005:
        return f"{losses}, at the same latency."
    agree = (slower > 1) == (alike or gap > 0)
    change = f"{words.percent(abs(slower - 1))} {'longer' if slower > 1 else 'less time'}"
    return f"{losses} {'and' if agree else 'but'} it takes {change}."


def _leader(summary: dict[str, Any]) -> str:
    stage = f"rung {top_rung(summary)}"
    losses = [(point.loss, one.label) for one in trajectories(summary) if (point := one.at(stage))]
    if not losses:
        return ""
    loss, label = min(losses)
    return f"The lowest loss at {stage}, {words.nats(loss)} nats per token, has {label}."


def _failures(summary: dict[str, Any]) -> list[tuple[str, int]]:
    every = [*summary["trials"], *summary["promoted"], *summary["baselines"]]
    return Counter(str(one["failure"]) for one in every if one.get("failure")).most_common(5)
