"""The losses of each candidate from rung 0 to retraining, which the figures draw as one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

HAND_MADE = ("uniform", "mlp-heads", "depth", "random-weights")
RETRAINING = "retraining"


class Role(StrEnum):
    """The role of a candidate, which decides how the figures draw it."""

    CHOSEN = "chosen"
    PROMOTED = "promoted"
    BASELINE = "baseline"
    CANDIDATE = "candidate"


@dataclass(frozen=True, eq=False)
class TrajectoryPoint:
    """One complete evaluation: at a rung, or after retraining.

    Attributes:
        stage: ``rung 0``, ``rung 1``, … or ``retraining``.
        tokens: distillation tokens seen so far.
        loss: validation loss in nats per token.
        evaluation: the entry in the summary.
        row: the HTML id of the table row that shows the evaluation.
    """

    stage: str
    tokens: int
    loss: float
    evaluation: dict[str, Any]
    row: str


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All complete evaluations of one architecture, lowest fidelity first; ``student`` if retrained."""

    label: str
    origin: str
    role: Role
    architecture: dict[str, Any]
    parameters: int
    points: tuple[TrajectoryPoint, ...]
    student: dict[str, Any] | None

    def at(self, stage: str) -> TrajectoryPoint | None:
        """Return the evaluation at a stage, or None."""
        return next((point for point in self.points if point.stage == stage), None)

    @property
    def retrained(self) -> TrajectoryPoint | None:
        """The evaluation after retraining, or None."""
        return self.at(RETRAINING)


def trial_row(trial: dict[str, Any]) -> str:
    """Return the HTML id of a trial's row in the table of all trials."""
    return f"trial-{trial['rung']}-{trial['number']}"


def model_row(student: dict[str, Any]) -> str:
    """Return the HTML id of a model's row in the table of retrained models."""
    return f"model-{candidate(student)}"


def candidate(entry: dict[str, Any]) -> str:
    """Return the key that all rows of one candidate share; the model from random weights has its own."""
    return "random-weights" if entry["origin"] == "random-weights" else str(entry["label"])


def trajectories(summary: dict[str, Any]) -> list[Trajectory]:
    """Return a trajectory for every evaluated architecture, sorted by role so that the chosen one is last."""
    found = [trajectory for trajectory in _all(summary) if trajectory.points]
    order = [Role.CANDIDATE, Role.BASELINE, Role.PROMOTED, Role.CHOSEN]
    return sorted(found, key=lambda trajectory: order.index(trajectory.role))


def retrained_entries(summary: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
    """Return (whether promoted, entry) of the promoted models, then of the baselines not among them."""
    promoted = {entry["label"] for entry in summary["promoted"]}
    others = [
        entry
        for entry in summary["baselines"]
        if entry["origin"] == "random-weights" or entry["label"] not in promoted
    ]
    return [*((True, entry) for entry in summary["promoted"]), *((False, entry) for entry in others)]


def chosen_student(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Return the chosen model's entry, from the promoted models or, if a baseline won, the baselines."""
    if summary["chosen"] is None:
        return None
    candidates = [*summary["promoted"], *_pruned_baselines(summary)]
    return next((entry for entry in candidates if entry["label"] == summary["chosen"]["label"]), None)


def top_rung(summary: dict[str, Any]) -> int | None:
    """Return the highest rung with a complete trial, or None."""
    return max((trial["rung"] for trial in summary["trials"] if _is_complete(trial)), default=None)


def _all(summary: dict[str, Any]) -> Iterator[Trajectory]:
    students = {entry["label"]: entry for entry in [*_pruned_baselines(summary), *summary["promoted"]]}
    trials: dict[str, list[dict[str, Any]]] = {label: [] for label in students}
    for trial in sorted(summary["trials"], key=lambda trial: (trial["rung"], trial["number"])):
        trials.setdefault(trial["label"], []).append(trial)
    for label, evaluations in trials.items():
        yield _trajectory(summary, label, evaluations, students.get(label))
    for entry in summary["baselines"]:
        if entry["origin"] == "random-weights":
            yield _build(entry, Role.BASELINE, tuple(_retraining_point(entry)), entry)


def _trajectory(
    summary: dict[str, Any], label: str, trials: list[dict[str, Any]], student: dict[str, Any] | None
) -> Trajectory:
    by_rung = {trial["rung"]: trial for trial in trials if _is_complete(trial)}
    points = [
        TrajectoryPoint(f"rung {rung}", trial["tokens"], trial["loss"], trial, trial_row(trial))
        for rung, trial in by_rung.items()
    ]
    entry = student or trials[0]
    return _build(entry, _role(summary, label, entry), (*points, *_retraining_point(student)), student)


def _build(
    entry: dict[str, Any], role: Role, points: tuple[TrajectoryPoint, ...], student: dict[str, Any] | None
) -> Trajectory:
    sizes = entry["architecture"], entry["parameters"]
    return Trajectory(entry["label"], entry["origin"], role, *sizes, points, student)


def _role(summary: dict[str, Any], label: str, entry: dict[str, Any]) -> Role:
    if summary["chosen"] is not None and summary["chosen"]["label"] == label:
        return Role.CHOSEN
    if any(promoted["label"] == label for promoted in summary["promoted"]):
        return Role.PROMOTED
    return Role.BASELINE if entry["origin"] in HAND_MADE else Role.CANDIDATE


def _retraining_point(student: dict[str, Any] | None) -> Iterator[TrajectoryPoint]:
    if student is not None and student["loss"] is not None:
        yield TrajectoryPoint(RETRAINING, student["tokens"], student["loss"], student, model_row(student))


def _pruned_baselines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in summary["baselines"] if entry["origin"] != "random-weights"]


def _is_complete(trial: dict[str, Any]) -> bool:
    return trial["state"] == "complete" and trial["loss"] is not None
