"""The way of each candidate through the rungs to retraining, which the figures draw as one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

HAND_MADE = ("uniform", "mlp-heads", "depth", "random-weights")
RETRAINING = "retraining"


class Role(StrEnum):
    """What a candidate is to the reader."""

    CHOSEN = "chosen"
    PROMOTED = "promoted"
    BASELINE = "baseline"
    CANDIDATE = "candidate"


@dataclass(frozen=True, eq=False)
class TrajectoryPoint:
    """One complete evaluation: at a rung, or after retraining.

    Attributes:
        stage: ``rung 0``, ``rung 1``, … or ``retraining``.
        tokens: tokens of distillation seen until then.
        loss: nats per token.
        evaluation: the entry of the summary.
        row: of the table that has it, as the page names its rows.
    """

    stage: str
    tokens: int
    loss: float
    evaluation: dict[str, Any]
    row: str


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All complete evaluations of one architecture, in the order of their fidelity."""

    label: str
    origin: str
    role: Role
    architecture: dict[str, Any]
    parameters: int
    stops: tuple[TrajectoryPoint, ...]
    student: dict[str, Any] | None

    def at(self, stage: str) -> TrajectoryPoint | None:
        """The evaluation at a stage, or None."""
        return next((stop for stop in self.stops if stop.stage == stage), None)

    @property
    def retrained(self) -> TrajectoryPoint | None:
        """The evaluation after retraining, or None."""
        return self.at(RETRAINING)


def trial_row(trial: dict[str, Any]) -> str:
    """The name of a trial's row in the table of all trials."""
    return f"trial-{trial['rung']}-{trial['number']}"


def model_row(student: dict[str, Any]) -> str:
    """The name of a model's row in the table of the retrained ones."""
    return f"model-{candidate(student)}"


def candidate(entry: dict[str, Any]) -> str:
    """What all rows of one candidate have in common; random weights are one of their own."""
    return "random-weights" if entry["origin"] == "random-weights" else str(entry["label"])


def trajectories(summary: dict[str, Any]) -> list[Trajectory]:
    """Every architecture that was evaluated at least once, baselines last, the chosen one at the end."""
    found = [trajectory for trajectory in _all(summary) if trajectory.stops]
    order = [Role.CANDIDATE, Role.BASELINE, Role.PROMOTED, Role.CHOSEN]
    return sorted(found, key=lambda trajectory: order.index(trajectory.role))


def retrained_entries(summary: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
    """Promoted models, then the baselines that are not among them; with each, whether it was promoted."""
    promoted = {entry["label"] for entry in summary["promoted"]}
    others = [
        entry
        for entry in summary["baselines"]
        if entry["origin"] == "random-weights" or entry["label"] not in promoted
    ]
    return [*((True, entry) for entry in summary["promoted"]), *((False, entry) for entry in others)]


def chosen_student(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The chosen model's entry, from the promoted ones or, if a baseline won, from the baselines."""
    if summary["chosen"] is None:
        return None
    candidates = [*summary["promoted"], *_kept_baselines(summary)]
    return next((entry for entry in candidates if entry["label"] == summary["chosen"]["label"]), None)


def top_rung(summary: dict[str, Any]) -> int | None:
    """The highest rung with a complete trial, or None."""
    return max((trial["rung"] for trial in summary["trials"] if _is_complete(trial)), default=None)


def _all(summary: dict[str, Any]) -> Iterator[Trajectory]:
    students = {entry["label"]: entry for entry in [*_kept_baselines(summary), *summary["promoted"]]}
    trials: dict[str, list[dict[str, Any]]] = {label: [] for label in students}
    for trial in sorted(summary["trials"], key=lambda trial: (trial["rung"], trial["number"])):
        trials.setdefault(trial["label"], []).append(trial)
    for label, evaluations in trials.items():
        yield _journey(summary, label, evaluations, students.get(label))
    for entry in summary["baselines"]:
        if entry["origin"] == "random-weights":
            yield _of(entry, Role.BASELINE, tuple(_last_stop(entry)), entry)


def _journey(
    summary: dict[str, Any], label: str, trials: list[dict[str, Any]], student: dict[str, Any] | None
) -> Trajectory:
    by_rung = {trial["rung"]: trial for trial in trials if _is_complete(trial)}
    stops = [
        TrajectoryPoint(f"rung {rung}", trial["tokens"], trial["loss"], trial, trial_row(trial))
        for rung, trial in by_rung.items()
    ]
    entry = student or trials[0]
    return _of(entry, _role(summary, label, entry), (*stops, *_last_stop(student)), student)


def _of(
    entry: dict[str, Any], role: Role, stops: tuple[TrajectoryPoint, ...], student: dict[str, Any] | None
) -> Trajectory:
    sizes = entry["architecture"], entry["parameters"]
    return Trajectory(entry["label"], entry["origin"], role, *sizes, stops, student)


def _role(summary: dict[str, Any], label: str, entry: dict[str, Any]) -> Role:
    if summary["chosen"] is not None and summary["chosen"]["label"] == label:
        return Role.CHOSEN
    if any(promoted["label"] == label for promoted in summary["promoted"]):
        return Role.PROMOTED
    return Role.BASELINE if entry["origin"] in HAND_MADE else Role.CANDIDATE


def _last_stop(student: dict[str, Any] | None) -> Iterator[TrajectoryPoint]:
    if student is not None and student["loss"] is not None:
        yield TrajectoryPoint(RETRAINING, student["tokens"], student["loss"], student, model_row(student))


def _kept_baselines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in summary["baselines"] if entry["origin"] != "random-weights"]


def _is_complete(trial: dict[str, Any]) -> bool:
    return trial["state"] == "complete" and trial["loss"] is not None
