"""Beside the trainers of TRL and ModelOpt, which run the teacher in every step and hold all logits.

Each side runs in a process of its own, all in turns: a step that is not timed, then the timed ones. Same
models, batch, optimiser, clipping and mixed precision; no logging, no saving, no gradient checkpointing.
Peak memory is all that models, optimiser, targets and steps take, without what libraries take before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from evaluators.distillation.targets.batch import FormName
from studies.benchmarks.distil_models import Marks, Shape, cached, made, picked, teacher_of, unit
from studies.benchmarks.distil_process import Peak, in_process
from studies.benchmarks.distil_steps import our_steps
from studies.benchmarks.figure import Figure

#: The extra that is needed for each peer, and what it is called.
PEERS = {"trl": "TRL's GKDTrainer", "modelopt": "ModelOpt's KDTrainer"}
#: Times the tokens a second of the better peer, and times less memory.
_SPEED, _MEMORY = 1.5, 1 / 0.6


@dataclass(frozen=True)
class Trained:
    """What a few steps took."""

    seconds: list[float]
    """Of each step."""
    peak: int
    """Bytes."""


def peer_figures(shape: Shape, turns: int, memory: float = _MEMORY) -> list[Figure]:
    """Tokens a second and peak memory of ours, with the targets a run would choose, beside every peer's.

    Args:
        shape: of models and steps.
        turns: that each side has.
        memory: how many times less of it is good enough.
    """
    there = [name for name in PEERS if find_spec(name) is not None]
    form = picked(shape)
    runs: dict[str, list[Trained]] = {side: [] for side in (form, *there)}
    for _ in range(turns):
        for side, found in runs.items():
            found.append(in_process(trained, side, shape))
    took = {side: _summary(found) for side, found in runs.items()}
    return [figure for peer in PEERS for figure in beside(shape, form, peer, took, memory)]


def _summary(runs: Sequence[Trained]) -> tuple[float, int]:
    """The median seconds of a step, and the median peak in bytes."""
    return median(time for run in runs for time in run.seconds), int(median(run.peak for run in runs))


def beside(
    shape: Shape, form: FormName, peer: str, took: Mapping[str, tuple[float, int]], memory: float
) -> list[Figure]:
    """Ours beside a peer: tokens a second, and peak memory.

    Args:
        shape: of models and steps.
        form: of our targets.
        peer: one of ``PEERS``, which may be missing in ``took``.
        took: seconds of a step and bytes, by side.
        memory: how many times less of it is good enough.
    """
    trained = f"{shape.words}: trained with {form} targets"
    names = [f"{trained}, {what}, beside {PEERS[peer]}" for what in (f"tokens per {unit()}", "peak GB")]
    (seconds, peak), theirs = took[form], took.get(peer)
    ours = [shape.tokens / seconds, peak / 1e9]
    bounds = [_SPEED, memory]
    if theirs is None:
        nothing = float("nan")
        return [
            Figure(name, found, nothing, nothing, bound, missing="not installed")
            for name, found, bound in zip(names, ours, bounds, strict=True)
        ]
    return [
        Figure(names[0], ours[0], shape.tokens / theirs[0], theirs[0] / seconds, bounds[0]),
        Figure(names[1], ours[1], theirs[1] / 1e9, theirs[1] / peak, bounds[1]),
    ]


def trained(side: str, shape: Shape) -> Trained:
    """Train a student for a few steps.

    Args:
        side: a form of targets, which is ours, or one of ``PEERS``.
        shape: of models and steps.
    """
    warnings.simplefilter("ignore")
    work = _side(side)
    peak = Peak()
    student, teacher = made(shape.student, torch.float32), teacher_of(shape)
    with TemporaryDirectory() as folder:
        seconds = work(student, teacher, shape, Path(folder))
    return Trained(seconds, peak.bytes())


Side = Callable[[PreTrainedModel, PreTrainedModel, Shape, Path], list[float]]


def _side(side: str) -> Side:
    """With its libraries imported, so that these are not counted."""
    if side == "trl":
        return _trl()
    return _modelopt() if side == "modelopt" else _ours(FormName(side))


def _ours(form: FormName) -> Side:
    def work(student: PreTrainedModel, teacher: PreTrainedModel, shape: Shape, folder: Path) -> list[float]:
        return our_steps(student, cached(teacher, shape.text(), form, folder), shape)

    return work


def _trl() -> Side:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def work(student: PreTrainedModel, teacher: PreTrainedModel, shape: Shape, folder: Path) -> list[float]:
        config = GKDConfig(lmbda=0.0, beta=0.0, temperature=1.0, **arguments(shape, folder))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")),
            eos_token="b",
            pad_token="a",
        )
        return _timed(
            GKDTrainer, shape, model=student, teacher_model=teacher, args=config, processing_class=tokenizer
        )

    return work


def _modelopt() -> Side:
    from modelopt.torch.distill.plugins.huggingface import KDTrainer

    def work(student: PreTrainedModel, teacher: PreTrainedModel, shape: Shape, folder: Path) -> list[float]:
        config = TrainingArguments(**arguments(shape, folder))
        about = {"teacher_model": teacher}
        return _timed(KDTrainer, shape, model=student, args=config, distill_args=about)

    return work


def arguments(shape: Shape, folder: Path) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": shape.blocks,
        "max_steps": shape.steps + 1,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "activation_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def _timed(trainer: Callable[..., Any], shape: Shape, **given: object) -> list[float]:
    """The times of the steps behind the first."""
    text, marks = shape.text(), Marks()
    rows = Dataset.from_dict({"block": list(range(len(text)))})
    callback = type("AtStepEnd", (TrainerCallback,), {"on_step_end": lambda *_, **__: marks()})
    trainer(
        train_dataset=rows, data_collator=lambda some: _collated(text, some), callbacks=[callback()], **given
    ).train()
    return marks.between()


def _collated(text: Tensor, rows: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
    tokens = text[[row["block"] for row in rows]].long()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}
