"""The promoted candidates, distilled to the end and written as ordinary Hugging Face models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.loop import Checkpointing, DivergenceError
from evaluators.huggingface.quiet import quiet
from evaluators.metrics.loss import bits_per_byte
from evaluators.teacher.writing import write_directory
from search.rungs.evaluation import RANDOM_WEIGHTS, Retrained
from search.stages.branches import of_retraining, spared
from search.stages.workbench import Workbench
from search.storage.whole_file import write_whole
from space.axes.architecture import Architecture
from space.cutting.extraction import student_config

#: Of a retraining, at equal distances.
VALIDATIONS = 6


@dataclass(frozen=True)
class Assignment:
    """What is to be retrained."""

    architecture: Architecture
    origin: str
    number: int
    """Of the model's folder."""

    @property
    def key(self) -> str:
        """Names the retraining within the run."""
        kind = RANDOM_WEIGHTS if self.origin == RANDOM_WEIGHTS else "pruned"
        return f"{kind}-{self.architecture.label}"

    @property
    def folder(self) -> str:
        """Of the model, below ``models/``."""
        return f"{self.number:02d}-{self.architecture.label}"


def finished(bench: Workbench, assignment: Assignment) -> Retrained | None:
    """The result of a retraining that an earlier process finished."""
    path = bench.directory / "retraining" / f"{assignment.key}.json"
    if not path.exists():
        return None
    _checkpointing(bench, assignment).remove()  # which that process may not have come to
    fields = json.loads(path.read_text())
    fields["architecture"] = Architecture(**fields["architecture"])
    fields["curve"] = [(tokens, loss) for tokens, loss in fields["curve"]]
    return Retrained(**fields)


def retrain(bench: Workbench, assignment: Assignment, advance: Callable[[int], None]) -> Retrained:
    """Distil a candidate for all of the retraining tokens, from where an earlier process stopped.

    The model has the weights with the lowest validation loss of all that were seen on the way.
    One that diverges in spite of a step back at a lower rate, or does not fit into memory block by block, is
    recorded with the reason.

    A model from random weights is measured and not kept.

    Raises:
        OSError: the disk is full; after space is made the retraining goes on where it was.
    """
    saving = _checkpointing(bench, assignment)
    try:
        result = _retrain(bench, assignment, saving, advance)
    except (DivergenceError, torch.OutOfMemoryError) as error:
        result = Retrained(
            assignment.architecture, assignment.origin, None, None, 0, 0.0, [], None, str(error)
        )
    path = saving.path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(result)))
    saving.remove()
    return result


def _checkpointing(bench: Workbench, assignment: Assignment) -> Checkpointing:
    path = bench.directory / "retraining" / f"{assignment.key}.safetensors"
    return Checkpointing(
        path=path,
        best=path.with_suffix(".best.safetensors"),
        key=f"{assignment.key} {bench.config.retrain_tokens}",
    )


def _retrain(
    bench: Workbench, assignment: Assignment, saving: Checkpointing, advance: Callable[[int], None]
) -> Retrained:
    architecture = assignment.architecture
    from_random = assignment.origin == RANDOM_WEIGHTS
    student = _random(bench, architecture) if from_random else bench.extract(architecture)
    if not from_random:
        saving = of_retraining(bench, architecture, saving)
    known = spared(bench, saving)
    outcome = bench.train(
        student, bench.config.retrain_tokens, bench.retraining_targets, advance, VALIDATIONS, saving
    )
    path = None
    if not from_random:
        path = f"models/{assignment.folder}"
        write_model(bench, student, bench.directory / path)
        student = reload(bench, bench.directory / path)
    loss = bench.exact_loss(student)
    validation = bench.corpus.validation
    predicted = validation.shape[0] * (validation.shape[1] - 1)
    return Retrained(
        architecture,
        assignment.origin,
        loss,
        bits_per_byte(loss, predicted, bench.corpus.validation_bytes),
        outcome.tokens,
        outcome.seconds,
        [(tokens, value) for tokens, value in outcome.curve if math.isfinite(value)],
        path,
        note=outcome.note,
        branch_tokens=known,
    )


def _random(bench: Workbench, architecture: Architecture) -> PreTrainedModel:
    kept = bench.kept_layers(architecture)
    torch.manual_seed(bench.config.seed)
    config = student_config(bench.axis_map, architecture, kept)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    nn.Module.to(model, bench.teacher.model.device)
    return model


def write_model(bench: Workbench, student: PreTrainedModel, path: Path) -> None:
    """Write a directory that transformers loads, in the dtype of the teacher's weights on disk."""
    student.generation_config = bench.teacher.model.generation_config
    write_directory(student, bench.teacher.tokenizer, bench.teacher.stored_dtype, path)


def reload(bench: Workbench, path: Path) -> PreTrainedModel:
    """The model as anybody will load it."""
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=bench.teacher.model.dtype)
    nn.Module.to(model, bench.teacher.model.device)
    model.eval()
    return model
