"""Builds the summary of a run: every figure of the report, from the studies and the retrainings."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from evaluators.metrics.energy import Energy
from evaluators.metrics.latency import device_name
from evaluators.metrics.loss import perplexity
from search.foresight.foresight import foresight
from search.rungs.bracket import pareto_front
from search.rungs.evaluation import RANDOM_WEIGHTS, Evaluation, FinishedTrial, Retrained
from search.rungs.rung import Rung
from search.runs.choice import Choice, choose, eligible, load_choice
from search.runs.criteria import Criteria
from search.settings.config import NESTED, RunConfig
from search.settings.methods import loss_of, targets_as_dict
from search.settings.objectives import excess_over
from search.settings.task_objectives import description_of, least_scores, unit_of
from search.settings.teachers import TrainingPhase
from search.stages.benchmarks import TEACHER, Results
from search.stages.correction import Correction
from search.stages.inspection import Inspection
from search.stages.rates import StudentInTest, load_tested, rates_as_dict
from search.stages.run_context import RunContext
from search.stages.task_scores import task_figures
from search.storage.run_directory import RunDirectory
from space.axes.architecture import Architecture

_PACKAGES = ("slimsearch", "torch", "transformers", "optuna", "accelerate", "datasets", "plotly")


@dataclass(frozen=True)
class TeacherFigures:
    """Measurements of the teacher."""

    loss: float
    latency_ms: float | None
    objectives: Mapping[str, float] = field(default_factory=dict)
    """Those that are tasks."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Other figures of these tasks."""


@dataclass(frozen=True)
class FinalMeasurements:
    """Measurements at the end of the run, after its models are written."""

    benchmarks: Results
    inspection: Inspection
    energy: Energy | None
    """Energy of all processes; None if no machine has a meter."""


@dataclass(frozen=True)
class SummaryBuilder:
    """Builds the summary of a finished run."""

    context: RunContext
    rungs: Sequence[Rung]
    teacher: TeacherFigures
    promoted: Sequence[Retrained]
    baselines: Sequence[Retrained]
    final: FinalMeasurements
    correction: Correction | None
    seconds: dict[str, float]
    command: str

    def summary(self) -> dict[str, Any]:
        """Return the summary in the form of ``summary.schema.json``."""
        config, corpus = self.context.config, self.context.corpus
        records = [record for rung in self.rungs for record in rung.records()]
        retrained = [*self.promoted, *self.baselines]
        place = RunDirectory(self.context.directory).choice
        choice = load_choice(place, retrained) or self._choice(retrained)
        return {
            "name": config.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "device": device_name(torch.device(config.device)),
            "teacher": self._teacher(),
            "budget": self._budget(),
            "space": {"architectures": len(self.context.space)},
            "basis": self._basis(),
            "distillation": self._distillation(),
            "rates": rates_as_dict(self.context, self._tested),
            "objectives": [self._objective(name) for name in config.objectives],
            "bounds": [
                {"name": name, "unit": unit_of(name), "most": most}
                for name, most in config.upper_bounds.items()
            ],
            "least": [{"name": name, "least": score} for name, score in self._least.items()],
            "rungs": [{"rung": i, "tokens": t} for i, t in enumerate((0, *config.rung_tokens))],
            "corpus": {
                "id": corpus.id,
                "block": corpus.block,
                "calibration_tokens": corpus.calibration.numel(),
                "distillation_tokens": corpus.distillation.numel(),
                "validation_tokens": corpus.validation.numel(),
                "fingerprint": corpus.fingerprint,
                "learn": config.learn,
                "layout": corpus.layout.words(self.context.teacher.tokenizer),
                "sources": self._sources(),
            },
            "trials": [self._trial(record) for record in records],
            "pareto": self._pareto(),
            "promoted": [self._retrained(result, records) for result in self.promoted],
            "chosen": {"label": choice.label, "reason": choice.reason} if choice else None,
            "baselines": [self._retrained(result, records) for result in self.baselines],
            **foresight(self.rungs, self.context.space, retrained, config.retrain_tokens, self.teacher.loss),
            "prompts": list(self.final.inspection.prompts),
            "tokens": self._tokens(records),
            "seconds": self.seconds | {"total": sum(self.seconds.values())},
            "energy": asdict(self.final.energy) if self.final.energy else None,
            "versions": versions(),
        }

    @property
    def _least(self) -> dict[str, float]:
        return least_scores(self.context.config.least, self.context.config.benchmarks)

    def _choice(self, retrained: Sequence[Retrained]) -> Choice | None:
        """Choose the model of the lowest loss among those within the bounds, scores on tasks included."""
        least = self._least
        able = [one for one in eligible(retrained, self.rungs) if self._reaches(one, least)]
        return choose(able, f" with {Criteria(least=least).words}" if least else "")

    def _reaches(self, result: Retrained, least: Mapping[str, float]) -> bool:
        found = self.final.benchmarks.get(result.path or "", {})
        scores = {name: one.score.value for name, one in found.items() if one.score is not None}
        return all(name in scores and scores[name] >= score for name, score in least.items())

    def _sources(self) -> list[dict[str, Any]]:
        corpus = self.context.corpus
        return [
            {
                "id": source.id,
                "share": source.share,
                "distillation_tokens": source.distillation_blocks * corpus.block,
                "validation_tokens": source.validation_blocks * corpus.block,
                "times": source.times,
            }
            for source in corpus.sources
        ]

    def _budget(self) -> dict[str, Any]:
        budget = self.context.space.budget
        return {
            "amount": budget.amount,
            "of": budget.of.value,
            "unit": budget.of.unit,
            "tolerance": budget.tolerance,
        }

    def _basis(self) -> dict[str, Any]:
        trial, basis = self.context.basis_trial, self.context.ranking.basis
        tried = [] if trial is None else [{**asdict(one), "tokens": trial.tokens} for one in trial.tried]
        return {
            "name": self.context.config.basis if trial is None else trial.basis,
            "reason": None if trial is None else trial.reason,
            "tried": tried,
            "kept_coordinates": basis.kept if basis is not None and basis.norms else None,
            "loss_added": basis.loss_added if basis is not None and basis.norms else None,
        }

    def _architecture(self, architecture: Architecture) -> dict[str, Any]:
        kept = self.context.kept_layers(architecture)
        return {**architecture.sizes(), "kept_layers": kept}

    def _teacher(self) -> dict[str, Any]:
        context = self.context
        sizes = context.axis_map.teacher
        costs = context.costs(sizes)
        return {
            "id": context.teacher.id,
            "revision": context.teacher.revision,
            "phases": list(context.config.phases),
            "passed_over": list(context.config.passed_over),
            "taught_by": _taught_by(context.config),
            "correction": self._correction(),
            "architecture": self._architecture(sizes),
            "parameters": int(costs["parameters"]),
            "loss": self.teacher.loss,
            "perplexity": _perplexity(self.teacher.loss),
            "bits_per_byte": context.bits_per_byte(self.teacher.loss),
            "latency_ms": self.teacher.latency_ms,
            "memory_bytes": int(costs["memory"]),
            "benchmarks": self._benchmarks(TEACHER),
            "tasks": self._tasks(self.teacher.objectives, self.teacher.details),
            **self.final.inspection.of(TEACHER),
            "objectives": costs
            | {"loss": self.teacher.loss, **self.teacher.objectives}
            | ({"latency": self.teacher.latency_ms} if self.teacher.latency_ms is not None else {}),
        }

    @property
    def _tested(self) -> dict[str, StudentInTest]:
        """The students of the range tests, by basis."""
        return load_tested(RunDirectory(self.context.directory).rates)

    def _objective(self, name: str) -> dict[str, str]:
        context = self.context
        described = description_of(name, context.workload, context.config.task_samples)
        return {"name": name, "unit": unit_of(name), "description": described}

    def _trial(self, record: FinishedTrial) -> dict[str, Any]:
        values = dict(record.evaluation.values) if record.evaluation else {}
        if not record.scored:
            values.pop("loss", None)
        return {
            "rung": record.rung,
            "number": record.number,
            "state": "complete" if record.scored else "over" if record.evaluation else "failed",
            "label": record.label,
            "origin": record.origin,
            "architecture": self._architecture(record.architecture),
            "parameters": self.context.space.parameters_of(record.architecture),
            "loss": values.get("loss"),
            "latency_ms": values.get("latency"),
            "objectives": values,
            "tasks": self._tasks(values, record.evaluation.details if record.evaluation else {}),
            "tokens": record.evaluation.tokens if record.evaluation else 0,
            "over": {} if record.feasible else excess_over(values, self.rungs[0].bounds),
            "failure": record.failure,
        }

    def _pareto(self) -> list[str]:
        within = self.rungs[-1].feasible()
        objectives = self.context.config.objectives
        return [within[i].label for i in pareto_front([r.values(objectives) for r in within])]

    def _retrained(self, result: Retrained, records: Sequence[FinishedTrial]) -> dict[str, Any]:
        pruned = result.origin != RANDOM_WEIGHTS
        mine = [r for r in records if r.architecture == result.architecture and r.scored]
        by_rung = {r.rung: dict(r.evaluation.values) for r in mine if r.evaluation}
        top = max(by_rung, default=0)
        costs = self.context.costs(result.architecture)
        latency = next((values["latency"] for values in by_rung.values() if "latency" in values), None)
        objectives = costs | ({"latency": latency} if latency is not None else {}) | dict(result.objectives)
        return {
            "label": result.label,
            "origin": result.origin,
            "architecture": self._architecture(result.architecture),
            "parameters": int(costs["parameters"]),
            "loss": result.loss,
            "perplexity": _perplexity(result.loss),
            "loss_after_pruning": by_rung.get(0, {}).get("loss") if pruned else None,
            "loss_after_short_distillation": by_rung[top]["loss"] if pruned and top else None,
            "bits_per_byte": result.bits_per_byte,
            "latency_ms": latency,
            "path": result.path,
            "tokens": result.tokens,
            "peak_rate": self._peak_rate(int(costs["parameters"]), result.tokens, pruned=pruned),
            "short": result.short,
            "seconds": result.seconds,
            "curve": [list(point) for point in result.curve],
            "objectives": objectives | ({"loss": result.loss} if result.loss is not None else {}),
            "benchmarks": self._benchmarks(result.path) if result.path else {},
            "tasks": self._tasks(result.objectives, result.details),
            **self.final.inspection.of(result.path),
            "failure": result.failure,
            "note": result.note,
        }

    def _peak_rate(self, parameters: int, tokens: int, *, pruned: bool) -> float:
        rates, config = self.context.rates, self.context.config
        rate_of = rates.of if pruned else rates.from_random_weights
        return rate_of(config, parameters, tokens)

    def _tasks(self, values: Mapping[str, float], details: Mapping[str, float]) -> dict[str, Any]:
        return task_figures(self.context.tasks.objectives, values, details)

    def _benchmarks(self, model: str) -> dict[str, Any]:
        teacher = self.final.benchmarks.get(TEACHER, {})
        found = self.final.benchmarks.get(model, {})
        return {task: result.as_dict(teacher.get(task)) for task, result in found.items()}

    def _correction(self) -> dict[str, Any] | None:
        if (done := self.correction) is None:
            return None
        return {
            "tokens": done.tokens,
            "seconds": done.seconds,
            "peak_rate": done.peak_rate,
            "loss_before": done.loss_before,
            "loss_after": done.loss_after,
            "curve": [list(point) for point in done.curve],
            "path": "teacher",
            "note": done.note,
        }

    def _distillation(self) -> dict[str, Any]:
        config = self.context.config
        return {
            "search": config.search,
            "loss": str(loss_of(config)),
            "states": list(config.states),
            "schedule": config.schedule,
            "optimizer": config.optimizer,
            "targets": self._targets(),
        }

    def _targets(self) -> dict[str, dict[str, Any]]:
        context = self.context
        return {
            "short_distillation": targets_as_dict(context.targets),
            "retraining": targets_as_dict(context.retraining_targets),
        }

    def _tokens(self, records: Sequence[FinishedTrial]) -> dict[str, int]:
        trial = self.context.basis_trial
        tried = trial.tokens * len(trial.tried) if trial else 0
        tried += sum(one.test.found.tokens for one in self._tested.values())
        short = sum(_tokens_trained(record.evaluation) for record in records if record.evaluation)
        if self.context.config.search == NESTED:  # all of them together
            short = self.context.config.spent_tokens
        tokens = {
            "teacher_correction": self.correction.tokens if self.correction else 0,
            "ranking": self.context.corpus.calibration.numel(),
            "targets": max(row["tokens"] if row["bytes"] else 0 for row in self._targets().values()),
            "short_distillation": short + tried,
            "retraining": sum(r.tokens - r.branch_tokens for r in (*self.promoted, *self.baselines)),
        }
        return tokens | {"total": sum(tokens.values())}


def _taught_by(config: RunConfig) -> str | None:
    other = TrainingPhase(config.taught_by, config.taught_by_revision or None)
    return str(other) if other.id else None


def _tokens_trained(evaluation: Evaluation) -> int:
    """Count the tokens that an evaluation trained on, without those of the branch that it resumed."""
    return evaluation.tokens - int(evaluation.details.get("branch_tokens", 0))


def _perplexity(loss: float | None) -> float | None:
    """Return the perplexity; None if there is no loss or the perplexity overflows a float."""
    value = math.inf if loss is None else perplexity(loss)
    return value if math.isfinite(value) else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence the figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
