"""The cost of a family, compared to separate searches and to training each model from random weights.

Tokens are measured; FLOPs are computed: 6 per weight and trained token, 2 per weight and token that the
teaching model reads. Ranking and validation are left out on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.metrics.pace import training_flops
from search.planning.messages import chosen_row
from search.settings.resolved import Resolved
from search.stages.preparation import basis_candidates, variants_of
from search.terminal.format import text_table
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import format_amount
from space.counting.counting import matrix_polynomial


@dataclass(frozen=True)
class StageCost:
    """The result and cost of one run of a family."""

    name: str
    """Name of the run."""
    teacher: str
    """The model that the students were cut from."""
    taught_by: str
    model: str
    """Path of the chosen model within the run directory."""
    parameters: int
    loss: float
    """Validation loss in nats per token."""
    validation: str
    """Description of the validation text and its block length."""
    matrix_weights: int
    """The model's weights in matrices that each token is multiplied with."""
    search_tokens: int
    """Tokens trained on in short distillation, over all candidates."""
    retraining_tokens: int
    """Tokens trained on in retraining, over all models."""
    read_tokens: int
    """Tokens that the teaching model read for its targets."""
    students_flops: int
    """FLOPs of training the students."""
    correction_flops: int
    """FLOPs of correcting the teacher."""
    reading_weights: int
    """Matrix weights of the teaching model."""

    @property
    def flops(self) -> int:
        """FLOPs of the run in total."""
        return self.at(self.reading_weights)

    def at(self, reading_weights: int) -> int:
        """FLOPs of the run in total, if a teaching model of ``reading_weights`` had been used."""
        return self.students_flops + self.correction_flops + 2 * reading_weights * self.read_tokens


def stage_cost(resolved: Resolved, summary: dict[str, Any]) -> StageCost:
    """Return the cost of a finished run that chose a model.

    Under the WSD schedule a training may resume a shorter one; the tokens saved are spread evenly over all
    trainings of its kind.

    Args:
        resolved: the run.
        summary: summary of the run.
    """
    variants = variants_of(resolved)
    chosen = variants.get(summary["basis"]["name"], resolved)
    tokens, row, teaching = summary["tokens"], chosen_row(summary), resolved.teaching
    assert row is not None, "a stage without a model ends the family"
    short = [*_trial_trainings(resolved, summary), *_trainings(chosen.axis_map, summary["trials"])]
    long = _trainings(chosen.axis_map, [*summary["promoted"], *summary["baselines"]])
    students = _flops_of(short, tokens["short_distillation"]) + _flops_of(long, tokens["retraining"])
    correction = training_flops(_matrix_weights(resolved.axis_map), tokens["teacher_correction"])
    corpus = summary["corpus"]
    return StageCost(
        name=summary["name"],
        teacher=summary["teacher"]["id"],
        taught_by=resolved.config.taught_by or summary["teacher"]["id"],
        model=row["path"],
        parameters=row["parameters"],
        loss=row["loss"],
        validation=f"{corpus['validation_tokens']:,} tokens of {corpus['id']} in blocks of {corpus['block']}",
        matrix_weights=_matrix_weights(chosen.axis_map, _architecture(row)),
        search_tokens=tokens["short_distillation"],
        retraining_tokens=tokens["retraining"],
        read_tokens=_tokens_read(summary),
        students_flops=students,
        correction_flops=correction,
        reading_weights=_matrix_weights(teaching),
    )


@dataclass(frozen=True)
class FamilyCost:
    """The cost of a family, over all of its runs."""

    name: str
    original: str
    """The teacher of the first run."""
    original_weights: int
    """Matrix weights of the original teacher."""
    taught_by: str
    """``original`` or ``previous``."""
    stages: tuple[StageCost, ...]
    teacher_tokens: int | None
    """Tokens that the original teacher was trained on, if known."""

    @property
    def flops(self) -> int:
        """FLOPs of all runs, without the training of the original teacher."""
        return sum(stage.flops for stage in self.stages)

    def separate(self, stage: StageCost) -> int:
        """Return the FLOPs of a run if the original were teacher and teaching model, on as many tokens."""
        return stage.at(self.original_weights)

    def scratch(self, stage: StageCost) -> int | None:
        """Return the FLOPs of training a run's model from random weights on the original's tokens."""
        tokens = self.teacher_tokens
        return None if tokens is None else training_flops(stage.matrix_weights, tokens)

    @property
    def saving(self) -> float | None:
        """The factor of ``family_saving``; None if the original's tokens are unknown."""
        if self.teacher_tokens is None:
            return None
        weights = [self.original_weights, *(stage.matrix_weights for stage in self.stages)]
        return family_saving(weights, self.teacher_tokens, self.flops)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``family.json``."""
        stages = [
            asdict(stage)
            | {
                "flops": stage.flops,
                "separate_flops": self.separate(stage),
                "random_weights_flops": self.scratch(stage),
            }
            for stage in self.stages
        ]
        return {
            "name": self.name,
            "original": self.original,
            "taught_by": self.taught_by,
            "teacher_tokens": self.teacher_tokens,
            "stages": stages,
            "flops": self.flops,
            "separate_flops": sum(map(self.separate, self.stages)),
            "saving": self.saving,
            "measured": ["parameters", "loss", "search_tokens", "retraining_tokens", "read_tokens"],
            "arithmetic": [key for key in stages[0] if "flops" in key or "weights" in key] + ["saving"],
        }


def family_saving(weights: Sequence[float], teacher_tokens: float, flops: float) -> float:
    """Return the cost of training every model of a family from random weights, relative to the family's cost.

    The training of the original counts on both sides, as in the factor 1.8 of arXiv 2407.14679.

    Args:
        weights: matrix weights of every model, the original first.
        teacher_tokens: tokens that each model would be trained on.
        flops: FLOPs of the family beyond the original's training.
    """
    each = [6 * one * teacher_tokens for one in weights]
    return sum(each) / (each[0] + flops)


def _matrix_weights(axis_map: AxisMap, architecture: Architecture | None = None) -> int:
    return int(matrix_polynomial(axis_map).of(architecture or axis_map.teacher))


def _architecture(row: dict[str, Any]) -> Architecture:
    sizes = row["architecture"]
    return Architecture(**{axis.value: sizes[axis] for axis in Axis if axis in sizes})


def _trainings(axis_map: AxisMap, rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return (matrix weights, tokens) of every training among rows of a summary."""
    matrices = matrix_polynomial(axis_map)
    return [(int(matrices.of(_architecture(row))), row["tokens"]) for row in rows if row["tokens"]]


def _trial_trainings(resolved: Resolved, summary: dict[str, Any]) -> list[tuple[int, int]]:
    """Return (matrix weights, tokens) of the students of the trial of bases."""
    variants = variants_of(resolved)
    tried = {(one.basis, one.origin): one.architecture for one in basis_candidates(resolved)}
    return [
        (_matrix_weights(variants[one["basis"]].axis_map, tried[one["basis"], one["origin"]]), one["tokens"])
        for one in summary["basis"]["tried"]
    ]


def _flops_of(trained: Sequence[tuple[int, int]], tokens: int) -> int:
    """Return the FLOPs of trainings of (matrix weights, tokens), scaled to ``tokens`` in total."""
    whole = sum(each for _, each in trained)
    flops = sum(training_flops(weights, each) for weights, each in trained)
    return round(flops * tokens / whole) if whole else 0


def _tokens_read(summary: dict[str, Any]) -> int:
    """Count the tokens that the teaching model read: once for cached targets, each time for live ones."""
    tokens, targets = summary["tokens"], summary["distillation"]["targets"]
    live = [kind for kind, about in targets.items() if about["form"] == "live"]
    return int(tokens["targets"] + sum(tokens[kind] for kind in live))


def family_table(cost: FamilyCost) -> str:
    """Return a table with a row per run, and notes on its figures."""
    head = ["run", "parameters", "loss", "search", "retraining", "FLOPs", "separately", "random weights"]
    rows = [head]
    for stage in cost.stages:
        tokens = format_amount(stage.search_tokens), format_amount(stage.retraining_tokens)
        flops = stage.flops, cost.separate(stage), cost.scratch(stage)
        rows.append([stage.name, f"{stage.parameters:,}", f"{stage.loss:.4f}", *tokens, *map(_flops, flops)])
    separate = sum(cost.separate(stage) for stage in cost.stages)
    scratch = [cost.scratch(stage) for stage in cost.stages]
    together = None if None in scratch else sum(one or 0 for one in scratch)
    search = format_amount(sum(stage.search_tokens for stage in cost.stages))
    retraining = format_amount(sum(stage.retraining_tokens for stage in cost.stages))
    rows.append(["together", "", "", search, retraining, *map(_flops, (cost.flops, separate, together))])
    return "\n".join([f"family   {cost.name}", *text_table(rows), *_notes(cost)])


def _notes(cost: FamilyCost) -> list[str]:
    teachers = "the models that they are cut from" if cost.taught_by == "previous" else cost.original
    notes = [
        f"Later runs are taught by {teachers}.",
        "Measured: parameters, losses, and the tokens that search and retraining trained students on.",
        "Arithmetic: FLOPs, 6 a weight and token trained on, 2 a weight and token that a teacher read.",
        f"separately: every budget searched from {cost.original} and taught by it, on as many tokens.",
    ]
    if cost.saving is None:
        notes.append(
            f"random weights: not told, since the tokens that {cost.original} was trained on are not known; "
            "--teacher-tokens says them."
        )
    else:
        notes.append(
            f"random weights: every model trained on the {format_amount(cost.teacher_tokens or 0)} tokens of "
            f"{cost.original}. With its own training on both sides, that costs {cost.saving:.3g} times what "
            "the family cost."
        )
    if len({stage.validation for stage in cost.stages}) > 1:
        each = "; ".join(f"{stage.name}: {stage.validation}" for stage in cost.stages)
        notes.append(f"The losses are not of the same text: {each}.")
    return notes


def _flops(number: int | None) -> str:
    return "–" if number is None else f"{number:.2e}"
