"""What a family cost, beside separate searches and beside training each of its models from random weights.

Tokens are measured, operations are arithmetic: six for each weight and token of a training, two for each
token that a teaching model reads. Ranking and validation are left out on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.metrics.pace import training_flops
from search.planning.messages import chosen_row
from search.settings.resolution import Resolved
from search.stages.preparation import basis_candidates, variants_of
from search.terminal.format import text_table
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import format_amount
from space.counting.counting import matrix_polynomial


@dataclass(frozen=True)
class StageCost:
    """What one run of a family came to."""

    name: str
    """Of the run."""
    teacher: str
    """That it was cut from."""
    taught_by: str
    model: str
    """That it chose, within its run directory."""
    parameters: int
    loss: float
    """Nats per token."""
    validation: str
    """Whose loss that is: the text and the blocks it is cut into."""
    matrix_weights: int
    """Of the model: those that a token is multiplied with."""
    search_tokens: int
    """Trained on in short distillation, over all candidates."""
    retraining_tokens: int
    """Trained on in retraining, over all models."""
    read_tokens: int
    """That a teaching model read for them."""
    students_flops: int
    """Of training the students."""
    correction_flops: int
    """Of correcting the teacher."""
    reading_weights: int
    """Matrix weights of the model that taught."""

    @property
    def flops(self) -> int:
        """All together."""
        return self.at(self.reading_weights)

    def at(self, reading_weights: int) -> int:
        """All together, had a model of so many matrix weights taught."""
        return self.students_flops + self.correction_flops + 2 * reading_weights * self.read_tokens


def stage_cost(resolved: Resolved, summary: dict[str, Any]) -> StageCost:
    """The cost of a finished run that chose a model.

    Under the schedule wsd a training may go on from a shorter one; what it spared is spread over all of its
    kind.

    Args:
        resolved: the run.
        summary: its summary.
    """
    variants = variants_of(resolved)
    settled = variants.get(summary["basis"]["name"], resolved)
    tokens, row, teaching = summary["tokens"], chosen_row(summary), resolved.teaching
    assert row is not None, "a stage without a model ends the family"
    short = [*_tried(resolved, summary), *_trained(settled.axis_map, summary["trials"])]
    long = _trained(settled.axis_map, [*summary["promoted"], *summary["baselines"]])
    students = _training(short, tokens["short_distillation"]) + _training(long, tokens["retraining"])
    correction = training_flops(_weights(resolved.axis_map), tokens["teacher_correction"])
    corpus = summary["corpus"]
    return StageCost(
        name=summary["name"],
        teacher=summary["teacher"]["id"],
        taught_by=resolved.config.taught_by or summary["teacher"]["id"],
        model=row["path"],
        parameters=row["parameters"],
        loss=row["loss"],
        validation=f"{corpus['validation_tokens']:,} tokens of {corpus['id']} in blocks of {corpus['block']}",
        matrix_weights=_weights(settled.axis_map, _architecture(row)),
        search_tokens=tokens["short_distillation"],
        retraining_tokens=tokens["retraining"],
        read_tokens=_read(summary),
        students_flops=students,
        correction_flops=correction,
        reading_weights=_weights(teaching),
    )


@dataclass(frozen=True)
class FamilyCost:
    """The cost of all stages."""

    name: str
    original: str
    """The teacher that the family began with."""
    original_weights: int
    """Its matrix weights."""
    taught_by: str
    """Original or previous."""
    stages: tuple[StageCost, ...]
    teacher_tokens: int | None
    """That the original was trained on, if that is known."""

    @property
    def flops(self) -> int:
        """Of the stages, without the original's training."""
        return sum(stage.flops for stage in self.stages)

    def separate(self, stage: StageCost) -> int:
        """FLOPs of a stage, had it been cut from the original and taught by it, on as many tokens."""
        return stage.at(self.original_weights)

    def scratch(self, stage: StageCost) -> int | None:
        """FLOPs of training a stage's model from random weights on the original's tokens."""
        tokens = self.teacher_tokens
        return None if tokens is None else training_flops(stage.matrix_weights, tokens)

    @property
    def saving(self) -> float | None:
        """See ``family_saving``; None if the original's tokens are not known."""
        if self.teacher_tokens is None:
            return None
        weights = [self.original_weights, *(stage.matrix_weights for stage in self.stages)]
        return family_saving(weights, self.teacher_tokens, self.flops)

    def as_dict(self) -> dict[str, Any]:
        """As ``family.json`` has it."""
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
    """How many times as much it costs to train every model of a family from random weights.

    Either way the original is trained; that is counted on both sides, as in the 1.8 of arXiv 2407.14679.

    Args:
        weights: in the matrices of every model, the original first.
        teacher_tokens: that each is trained on.
        flops: what the family took beyond the original.
    """
    each = [6 * one * teacher_tokens for one in weights]
    return sum(each) / (each[0] + flops)


def _weights(axis_map: AxisMap, architecture: Architecture | None = None) -> int:
    return int(matrix_polynomial(axis_map).of(architecture or axis_map.teacher))


def _architecture(row: dict[str, Any]) -> Architecture:
    sizes = row["architecture"]
    return Architecture(**{axis.value: sizes[axis] for axis in Axis if axis in sizes})


def _trained(axis_map: AxisMap, rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(matrix weights, tokens) of every training among the rows of a summary."""
    matrices = matrix_polynomial(axis_map)
    return [(int(matrices.of(_architecture(row))), row["tokens"]) for row in rows if row["tokens"]]


def _tried(resolved: Resolved, summary: dict[str, Any]) -> list[tuple[int, int]]:
    """The same of the students that the basis of hidden was tried out on."""
    variants = variants_of(resolved)
    who = {(one.basis, one.origin): one.architecture for one in basis_candidates(resolved)}
    return [
        (_weights(variants[one["basis"]].axis_map, who[one["basis"], one["origin"]]), one["tokens"])
        for one in summary["basis"]["tried"]
    ]


def _training(trained: Sequence[tuple[int, int]], tokens: int) -> int:
    """FLOPs of trainings that together read so many tokens."""
    whole = sum(each for _, each in trained)
    flops = sum(training_flops(weights, each) for weights, each in trained)
    return round(flops * tokens / whole) if whole else 0


def _read(summary: dict[str, Any]) -> int:
    """Tokens that the teaching model read: once what lies on the disk, each time what it was asked live."""
    tokens, targets = summary["tokens"], summary["distillation"]["targets"]
    live = [kind for kind, about in targets.items() if about["form"] == "live"]
    return int(tokens["targets"] + sum(tokens[kind] for kind in live))


def family_table(cost: FamilyCost) -> str:
    """A line for each run, and below it what the figures are."""
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
