"""Choose one of the retrained models and say why.

A run at work chooses the model with the lowest loss (``choose``). Afterwards a user may choose from the
summary by bounds and weights of their own (``choose_by_criteria``).
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from search.rungs.evaluation import BY_HAND, RANDOM_WEIGHTS, SEARCH, Retrained
from search.rungs.rung import Rung
from search.runs.criteria import Criteria, figure_of
from search.runs.summary import bounds_of, least_of
from search.settings.objectives import (
    UNITS,
    amount_in_words,
    excess_in_words,
    measured_bounds,
)
from search.storage.run_directory import atomic_write
from space.axes.architecture import Axis
from space.input_error import InputError

Entry = dict[str, Any]
#: Matches the command of a family, which starts several runs.
_FAMILY = re.compile(r"--budget[ =]\S*,")


class Contender(Protocol):
    """What ``Retrained`` and ``RetrainedEntry`` have in common."""

    @property
    def label(self) -> str:
        """Label of the architecture."""

    @property
    def origin(self) -> str:
        """What proposed the architecture: the search, the user, or the name of a baseline."""

    @property
    def loss(self) -> float | None:
        """Validation loss in nats per token; None if retraining failed."""


T = TypeVar("T", bound=Contender)


@dataclass(frozen=True)
class Choice:
    """The chosen model, and the reason in words."""

    label: str
    reason: str


def eligible(results: Sequence[Retrained], rungs: Sequence[Rung]) -> list[Retrained]:
    """Return the results that may be chosen: with measured bounds, those found within them."""
    if not rungs[-1].bounds:
        return list(results)
    records = [record for rung in rungs for record in rung.records()]
    within = {record.architecture for record in records if record.feasible}
    over = {record.architecture for record in records if record.evaluation and not record.feasible}
    return [result for result in results if result.architecture in within - over]


def contenders(results: Sequence[T]) -> list[T]:
    """Return the models that have a loss, lowest first; each label once, and none from random weights."""
    unique = {result.label: result for result in results if result.origin != RANDOM_WEIGHTS}
    ready = [(one.loss, number, one) for number, one in enumerate(unique.values()) if one.loss is not None]
    return [one for _, _, one in sorted(ready, key=lambda entry: entry[:2])]


def save_choice(path: Path, choice: Choice | None) -> None:
    """Save the user's choice, which a resumed run respects; None removes it."""
    if choice is None:
        path.unlink(missing_ok=True)
    else:
        atomic_write(path, json.dumps(asdict(choice), ensure_ascii=False))


def load_choice(path: Path, results: Sequence[Contender]) -> Choice | None:
    """Return the choice that ``save_choice`` wrote, or None if it is not among ``results``."""
    if not path.exists():
        return None
    choice = Choice(**json.loads(path.read_text(encoding="utf-8")))
    return choice if choice.label in {one.label for one in contenders(results)} else None


def choose(results: Sequence[Contender], within: str = "") -> Choice | None:
    """Choose the model with the lowest loss, whether the search or a hand-made baseline proposed it.

    Args:
        results: retrained models; failures and models from random weights are ignored.
        within: a phrase for the reason, such as `` within latency ≤ 20 ms``.
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


@dataclass(frozen=True)
class RetrainedEntry:
    """A retrained model as its entry in a summary describes it."""

    entry: Entry

    @property
    def label(self) -> str:
        """Label of the architecture."""
        return str(self.entry["label"])

    @property
    def origin(self) -> str:
        """What proposed the architecture: the search, the user, or the name of a baseline."""
        return str(self.entry["origin"])

    @property
    def loss(self) -> float | None:
        """Validation loss in nats per token; None if retraining failed."""
        loss: float | None = self.entry["loss"]
        return loss


@dataclass(frozen=True)
class Answer:
    """The model that the criteria choose, or why there is none."""

    chosen: Entry | None
    reason: str
    runner_up: Entry | None = None
    why_not: str = ""
    nearest: Entry | None = None
    """If none can be chosen: the retrained model that exceeds the bounds least."""
    candidate: Entry | None = None
    """If none can be chosen: the best trial within the bounds that was not retrained."""
    command: str = ""
    """The command that retrains ``candidate``; empty if there is none."""

    @property
    def choice(self) -> Choice | None:
        """The choice in the form that a summary holds, or None."""
        return Choice(self.chosen["label"], self.reason) if self.chosen else None


def choose_by_criteria(summary: Entry, criteria: Criteria) -> Answer:
    """Choose a model of a finished run by the user's criteria.

    The run's own bounds apply as well. Without weights, the lowest loss wins.

    Args:
        summary: a checked summary of a finished run.
        criteria: bounds and weights.

    Raises:
        InputError: the run did not measure an objective that is bounded or weighted.
    """
    criteria = replace(criteria, least={**least_of(summary), **criteria.least})
    retrained = contenders([RetrainedEntry(entry) for entry in (*summary["promoted"], *summary["baselines"])])
    _check_measured(summary, criteria, retrained)
    eligible = [row for row in retrained if row.label not in _excluded(summary)]
    within = [row for row in eligible if criteria.within(row.entry)]
    ranked = _ranked(within, criteria, summary["teacher"])
    if not ranked:
        return _none_within(summary, criteria, eligible)
    chosen, runner_up = ranked[0].entry, ranked[1].entry if len(ranked) > 1 else None
    reason = _reason(ranked, criteria, summary["teacher"])
    why_not = _why_not(chosen, runner_up, criteria, summary["teacher"]) if runner_up else ""
    return Answer(chosen, reason, runner_up, why_not)


def _excluded(summary: Entry) -> set[str]:
    """Return the labels that are not known to lie within the run's own measured bounds."""
    if not measured_bounds(bounds_of(summary)):
        return set()
    seen = [trial for trial in summary["trials"] if trial["state"] != "failed"]
    over = {trial["label"] for trial in seen if trial.get("over")}
    within = {trial["label"] for trial in seen if not trial.get("over")} - over
    return {entry["label"] for entry in (*summary["promoted"], *summary["baselines"])} - within


def _check_measured(summary: Entry, criteria: Criteria, rows: Sequence[RetrainedEntry]) -> None:
    wanted = [
        *criteria.bounds,
        *criteria.least,
        *(name for name, weight in criteria.weights.items() if weight),
    ]
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
    """Sort by weighted sum, lowest first; ties go to the lower share of the first objective."""
    if not criteria.weights:
        return list(rows)
    scored = [(criteria.score(row.entry, teacher), criteria.terms(row.entry, teacher), row) for row in rows]
    known = [
        (score, tuple(terms.values()), row) for score, terms, row in scored if score is not None and terms
    ]
    return [row for _, _, row in sorted(known, key=lambda found: found[:2])]


def _reason(ranked: Sequence[RetrainedEntry], criteria: Criteria, teacher: Entry) -> str:
    within = f" within {criteria.words}" if criteria.words else ""
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
    """Describe how the runner-up differs from the chosen model."""
    names = [name for name in criteria.weights if criteria.weights[name]] or ["loss"]
    names += [name for name in ("loss", "latency", *criteria.bounds, *criteria.least) if name not in names]
    parts = [
        _difference(name, figure_of(other, name), figure_of(chosen, name)) for name in dict.fromkeys(names)
    ]
    differences = ", ".join(part for part in parts if part)
    if not criteria.weights:
        return differences
    mine, its = criteria.score(chosen, teacher) or 0.0, criteria.score(other, teacher) or 0.0
    return f"weighted sum {its - mine:.4f} higher: {differences}"


def _difference(name: str, value: float | None, than: float | None) -> str:
    """Describe ``value`` relative to ``than``; empty if either is unknown."""
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
    bounds = replace(criteria, bounds={**bounds_of(summary), **criteria.bounds}).words
    reason = f"No retrained model lies within {bounds}" if bounds else "No model was retrained"
    if not eligible:
        return Answer(None, reason)

    def relative_excess(row: RetrainedEntry) -> float:
        bounds = {**criteria.bounds, **criteria.least}
        shares = (over / (abs(bounds[name]) or 1.0) for name, over in criteria.excess(row.entry).items())
        return max(shares, default=0.0)

    nearest = min(eligible, key=relative_excess).entry
    excess = criteria.excess(nearest)
    if all(map(math.isfinite, excess.values())):
        reason += f"; the nearest, {nearest['label']}, is {_excess_in_words(excess, criteria)}"
    candidate = _best_not_retrained(summary, criteria)
    command = _command(summary, candidate) if candidate else ""
    return Answer(None, reason, nearest=nearest, candidate=candidate, command=command)


def _excess_in_words(excess: Mapping[str, float], criteria: Criteria) -> str:
    over = {name: amount for name, amount in excess.items() if name not in criteria.least}
    under = [f"under the bound: {name} by {excess[name]:.4g}" for name in excess if name in criteria.least]
    return " and ".join(filter(None, [excess_in_words(over), *under]))


def _best_not_retrained(summary: Entry, criteria: Criteria) -> Entry | None:
    """Return the trial of the highest rung with the lowest loss, of those within the bounds not retrained."""
    done = {entry["label"] for entry in (*summary["promoted"], *summary["baselines"])}
    left = [
        trial
        for trial in summary["trials"]
        if trial["loss"] is not None
        and trial["label"] not in done
        and not trial.get("over")
        and replace(criteria, least={}).within(trial)  # tasks are scored when a model is retrained
    ]
    return min(left, key=lambda trial: (-trial["rung"], trial["loss"]), default=None)


def _command(summary: Entry, candidate: Entry) -> str:
    """Return the run's command restricted to this architecture; empty if the run belongs to a family."""
    if _FAMILY.search(summary["command"]):
        return ""
    axes = [axis.value for axis in Axis if axis.value in candidate["architecture"]]
    sizes = [f"{axis}={candidate['architecture'][axis]}" for axis in axes]
    name = f"{summary['name']}-{candidate['label']}"
    more = ["--sizes", *sizes, "--basis", summary["basis"]["name"]]
    more += ["--retrain-baselines", "False", "--study-name", name]
    return f"{summary['command']} {shlex.join(more)}"


def figures_in_words(entry: Entry) -> dict[str, str]:
    """Return the figures of a model or of the teacher, formatted for display, by name."""
    found = {"loss": "–" if entry["loss"] is None else f"{entry['loss']:.4f}"}
    if entry["bits_per_byte"] is not None:
        found["bits per byte"] = f"{entry['bits_per_byte']:.4f}"
    found["parameters"] = f"{entry['parameters']:,}"
    for name in ("latency", "memory", "flops"):
        if (value := figure_of(entry, name)) is not None:
            found[name] = amount_in_words(name, value)
    for task, score in entry.get("benchmarks", {}).items():
        if score["value"] is not None:
            error = f" ± {score['error']:.4f}" if score["error"] else ""
            found[task] = f"{score['value']:.4f}{error}"
    return found
