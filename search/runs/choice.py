"""Which of the retrained models to take, and why: by the run's own rule, or by a person's criteria."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from search.rungs.evaluation import BY_HAND, RANDOM_WEIGHTS, SEARCH, Retrained
from search.rungs.rung import Rung
from search.runs.criteria import Criteria, figure_of
from search.runs.summary import bounds_of
from search.settings.objectives import (
    UNITS,
    amount_in_words,
    bounds_in_words,
    excess_in_words,
    measured_bounds,
)
from search.storage.run_directory import atomic_write
from space.axes.architecture import Axis
from space.input_error import InputError


class Contender(Protocol):
    """A retrained model, whoever holds its figures."""

    @property
    def label(self) -> str:
        """Of its architecture."""

    @property
    def origin(self) -> str:
        """Who proposed it."""

    @property
    def loss(self) -> float | None:
        """Nats per token; None if it failed."""


T = TypeVar("T", bound=Contender)


@dataclass(frozen=True)
class Choice:
    """The model to take."""

    label: str
    reason: str


def eligible(results: Sequence[Retrained], rungs: Sequence[Rung]) -> list[Retrained]:
    """Those that may be chosen: where something measured is bounded, those that were found within."""
    if not rungs[-1].bounds:
        return list(results)
    records = [record for rung in rungs for record in rung.records()]
    within = {record.architecture for record in records if record.feasible}
    over = {record.architecture for record in records if record.evaluation and not record.feasible}
    return [result for result in results if result.architecture in within - over]


def contenders(results: Sequence[T]) -> list[T]:
    """Those with a loss, the lowest first; each model once, and none from random weights."""
    unique = {result.label: result for result in results if result.origin != RANDOM_WEIGHTS}
    ready = [(one.loss, number, one) for number, one in enumerate(unique.values()) if one.loss is not None]
    return [one for _, _, one in sorted(ready, key=lambda entry: entry[:2])]


def save_choice(path: Path, choice: Choice | None) -> None:
    """Write down a person's choice, which stands when the run is gone through again; None takes it back."""
    if choice is None:
        path.unlink(missing_ok=True)
    else:
        atomic_write(path, json.dumps(asdict(choice), ensure_ascii=False))


def load_choice(path: Path, results: Sequence[Contender]) -> Choice | None:
    """What ``save_choice`` wrote down, if it is one of these models."""
    if not path.exists():
        return None
    choice = Choice(**json.loads(path.read_text(encoding="utf-8")))
    return choice if choice.label in {one.label for one in contenders(results)} else None


def choose(results: Sequence[Contender], within: str = "") -> Choice | None:
    """The retrained model with the lowest loss, be it the search's or a hand-made baseline.

    Args:
        results: of retraining; failures and models from random weights are passed over.
        within: what else they have in common, for the reason.
    """
    ready = contenders(results)
    if not ready:
        return None
    best, loss = ready[0], ready[0].loss or 0.0
    others = f"lowest loss of {len(ready)} retrained models" if len(ready) > 1 else "the only retrained model"
    reason = f"{others}{within}, {loss:.4f} nats per token"
    if best.origin == BY_HAND:
        reason += "; it was named by hand"
    elif best.origin != SEARCH:
        return Choice(
            best.label,
            f"{reason}; it is the hand-made baseline {best.origin!r}: the search found none better",
        )
    beaten = next((one for one in ready if one.origin not in (SEARCH, BY_HAND)), None)
    if beaten is not None:
        gap = (beaten.loss or 0.0) - loss
        reason += f", {gap:.4f} below the best hand-made baseline ({beaten.origin})"
    return Choice(best.label, reason)


Entry = dict[str, Any]
#: In the command of a family, which begins several runs.
_FAMILY = re.compile(r"--budget[ =]\S*,")


@dataclass(frozen=True)
class RetrainedEntry:
    """A retrained model in a summary."""

    entry: Entry

    @property
    def label(self) -> str:
        """Of its architecture."""
        return str(self.entry["label"])

    @property
    def origin(self) -> str:
        """Who proposed it."""
        return str(self.entry["origin"])

    @property
    def loss(self) -> float | None:
        """Nats per token; None if it failed."""
        loss: float | None = self.entry["loss"]
        return loss


@dataclass(frozen=True)
class Answer:
    """Which model to take, or why none."""

    chosen: Entry | None
    reason: str
    runner_up: Entry | None = None
    why_not: str = ""
    nearest: Entry | None = None
    """If none can be chosen: the retrained model that is least over the bounds."""
    candidate: Entry | None = None
    """If none can be chosen: the best trial within the bounds whose architecture was not retrained."""
    command: str = ""
    """That retrains the candidate; empty if there is none."""

    @property
    def choice(self) -> Choice | None:
        """As a summary holds it."""
        return Choice(self.chosen["label"], self.reason) if self.chosen else None


def choose_by_criteria(summary: Entry, criteria: Criteria) -> Answer:
    """The model to take.

    What the run itself bounds stays bounded. Without weights it is the one with the lowest loss.

    Args:
        summary: of a finished run, checked.
        criteria: of a person.

    Raises:
        InputError: no model of the run has a figure for what is bounded or weighted.
    """
    every = contenders([RetrainedEntry(entry) for entry in (*summary["promoted"], *summary["baselines"])])
    _check_measured(summary, criteria, every)
    eligible = [row for row in every if row.label not in _excluded(summary)]
    within = [row for row in eligible if criteria.within(row.entry)]
    ranked = _ranked(within, criteria, summary["teacher"])
    if not ranked:
        return _none_within(summary, criteria, eligible)
    chosen, runner_up = ranked[0].entry, ranked[1].entry if len(ranked) > 1 else None
    reason = _reason(ranked, criteria, summary["teacher"])
    why_not = _why_not(chosen, runner_up, criteria, summary["teacher"]) if runner_up else ""
    return Answer(chosen, reason, runner_up, why_not)


def _excluded(summary: Entry) -> set[str]:
    """Architectures that are not known to lie within what the run itself bounds and measures."""
    if not measured_bounds(bounds_of(summary)):
        return set()
    seen = [trial for trial in summary["trials"] if trial["state"] != "failed"]
    over = {trial["label"] for trial in seen if trial.get("over")}
    within = {trial["label"] for trial in seen if not trial.get("over")} - over
    return {entry["label"] for entry in (*summary["promoted"], *summary["baselines"])} - within


def _check_measured(summary: Entry, criteria: Criteria, rows: Sequence[RetrainedEntry]) -> None:
    wanted = [*criteria.bounds, *(name for name, weight in criteria.weights.items() if weight)]
    for name in wanted:
        known = [row for row in rows if figure_of(row.entry, name) is not None]
        if rows and (not known or (name in criteria.weights and not figure_of(summary["teacher"], name))):
            has = [other for other in UNITS if all(figure_of(row.entry, other) is not None for row in rows)]
            raise InputError(
                "A model is chosen by what the run measured",
                f"{summary['name']} did not measure {name}",
                f"Choose by {', '.join(has)}",
            )


def _ranked(rows: Sequence[RetrainedEntry], criteria: Criteria, teacher: Entry) -> list[RetrainedEntry]:
    """The best first; of equal sums the one whose first objective is less."""
    if not criteria.weights:
        return list(rows)
    scored = [(criteria.score(row.entry, teacher), criteria.terms(row.entry, teacher), row) for row in rows]
    known = [
        (score, tuple(terms.values()), row) for score, terms, row in scored if score is not None and terms
    ]
    return [row for _, _, row in sorted(known, key=lambda found: found[:2])]


def _reason(ranked: Sequence[RetrainedEntry], criteria: Criteria, teacher: Entry) -> str:
    within = f" within {bounds_in_words(criteria.bounds)}" if criteria.bounds else ""
    if not criteria.weights:
        choice = choose(ranked, within)
        assert choice is not None, "there is one"
        return choice.reason
    best = ranked[0].entry
    shares = criteria.terms(best, teacher) or {}
    parts = " + ".join(
        f"{criteria.weights[name]:g} × {share:.3f} of {name}" for name, share in shares.items()
    )
    of = f"lowest weighted sum of {len(ranked)} retrained models" if len(ranked) > 1 else "the only model"
    return f"{of}{within}, {criteria.score(best, teacher):.4f}: {parts}, as shares of the teacher's"


def _why_not(chosen: Entry, other: Entry, criteria: Criteria, teacher: Entry) -> str:
    """What the runner-up has more and less of, in words."""
    names = [name for name in criteria.weights if criteria.weights[name]] or ["loss"]
    names += [name for name in ("loss", "latency", *criteria.bounds) if name not in names]
    parts = [
        _difference(name, figure_of(other, name), figure_of(chosen, name)) for name in dict.fromkeys(names)
    ]
    told_of = ", ".join(part for part in parts if part)
    if not criteria.weights:
        return told_of
    mine, its = criteria.score(chosen, teacher) or 0.0, criteria.score(other, teacher) or 0.0
    return f"weighted sum {its - mine:.4f} higher: {told_of}"


def _difference(name: str, value: float | None, than: float | None) -> str:
    if value is None or than is None:
        return ""
    if name == "loss":
        if round(abs(value - than), 4) == 0:
            return "the same loss"
        return f"loss {abs(value - than):.4f} nats {'higher' if value > than else 'lower'}"
    share = abs(value / than - 1) if than else math.inf
    return (
        f"{name} {share:.1%} {'higher' if value > than else 'lower'}"
        if share >= 0.0005
        else f"the same {name}"
    )


def _none_within(summary: Entry, criteria: Criteria, eligible: Sequence[RetrainedEntry]) -> Answer:
    bounds = {**bounds_of(summary), **criteria.bounds}
    reason = (
        f"No retrained model lies within {bounds_in_words(bounds)}" if bounds else "No model was retrained"
    )
    if not eligible:
        return Answer(None, reason)

    def share(row: RetrainedEntry) -> float:
        shares = (over / criteria.bounds[name] for name, over in criteria.excess(row.entry).items())
        return max(shares, default=0.0)

    nearest = min(eligible, key=share).entry
    excess = criteria.excess(nearest)
    if all(map(math.isfinite, excess.values())):
        reason += f"; the nearest, {nearest['label']}, is {excess_in_words(excess)}"
    candidate = _best_left(summary, criteria)
    command = _command(summary, candidate) if candidate else ""
    return Answer(None, reason, nearest=nearest, candidate=candidate, command=command)


def _best_left(summary: Entry, criteria: Criteria) -> Entry | None:
    """Of the trials within the bounds that were not retrained the lowest loss of the highest rung."""
    done = {entry["label"] for entry in (*summary["promoted"], *summary["baselines"])}
    left = [
        trial
        for trial in summary["trials"]
        if trial["loss"] is not None
        and trial["label"] not in done
        and not trial.get("over")
        and criteria.within(trial)
    ]
    return min(left, key=lambda trial: (-trial["rung"], trial["loss"]), default=None)


def _command(summary: Entry, candidate: Entry) -> str:
    """The run's own command, with a space that holds this architecture alone; empty for one of a family."""
    if _FAMILY.search(summary["command"]):
        return ""
    axes = [axis.value for axis in Axis if axis.value in candidate["architecture"]]
    sizes = [f"{axis}={candidate['architecture'][axis]}" for axis in axes]
    name = f"{summary['name']}-{candidate['label']}"
    more = ["--sizes", *sizes, "--basis", summary["basis"]["name"]]
    more += ["--retrain-baselines", "False", "--study-name", name]
    return f"{summary['command']} {shlex.join(more)}"


def figures_in_words(entry: Entry) -> dict[str, str]:
    """The figures of a model or of the teacher as people read them, by name."""
    found = {"loss": "–" if entry["loss"] is None else f"{entry['loss']:.4f}"}
    if entry["bits_per_byte"] is not None:
        found["bits per byte"] = f"{entry['bits_per_byte']:.4f}"
    found["parameters"] = f"{entry['parameters']:,}"
    for name in ("latency", "memory", "flops"):
        if (value := figure_of(entry, name)) is not None:
            found[name] = amount_in_words(name, value)
    return found
