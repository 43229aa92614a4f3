"""Teacher correction: train the teacher on the distillation text when its own training text is missing.

It lowers the loss of the distilled students by more than 6% (arXiv 2408.11796, section 3).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from evaluators.distillation.loop import Checkpointing, DistillationResult, TrainingMonitor, distil
from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.optimizers import OptimizerName, training_bytes
from evaluators.distillation.processes import in_any_process
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets.live import TextTargets
from evaluators.teacher.config import read_config
from evaluators.teacher.loading import Teacher, load_teacher
from evaluators.teacher.weights import fingerprint, free_bytes, weight_files
from evaluators.teacher.writing import write_directory
from space.input_error import InputError

#: As a share of the learning rate of a student of that size (arXiv 2408.11796, section 3).
_SHARE_OF_RATE = 0.2


def correct_teacher(
    teacher: Teacher,
    tokens: Tensor,
    schedule: Schedule,
    accelerator: Accelerator,
    path: Path,
    watch: TrainingMonitor,
    checkpointing: Checkpointing,
    optimizer: OptimizerName = OptimizerName.ADAMW,
    *,
    learnt: Tensor | None = None,
    micro_batch: int | None = None,
    recompute: bool = False,
) -> DistillationResult:
    """Train a teacher on text by cross-entropy, and write it to a directory.

    Do not use the teacher in memory afterwards; load what was written by ``read_corrected``. Of several
    processes, the main one writes.

    Args:
        teacher: the teacher as it was loaded.
        tokens: (N, T) blocks of the text.
        schedule: the schedule, with the rate of ``correction_rate``.
        accelerator: the device and precision.
        path: the directory to write; an existing one is replaced once the new one is complete.
        watch: validation and progress.
        checkpointing: the checkpoints of the training.
        optimizer: the optimiser, see ``distil``.
        learnt: (N, T) bool, True at each token whose next one is to be learnt; None: all are.
        micro_batch: blocks of the first micro-batch, see ``distil``.
        recompute: whether activations are recomputed, see ``distil``.

    Raises:
        InputError: the training does not fit into memory.
        DivergenceError: the loss is not finite.
        OSError: the disk is full.
    """
    model = teacher.model.requires_grad_(True)
    needed = training_bytes((one.shape for one in model.parameters()), optimizer).total
    if in_any_process(_is_too_large(teacher, needed), accelerator):
        raise _too_large(teacher, needed)
    try:
        outcome = distil(
            model,
            TextTargets(tokens, model.device, learnt),
            schedule,
            accelerator,
            watch,
            checkpointing,
            loss=Loss({Term.CROSS_ENTROPY: 1.0}),
            optimizer=optimizer,
            micro_batch=micro_batch,
            recompute=recompute,
        )
    except torch.OutOfMemoryError:
        raise _too_large(teacher, needed) from None
    if accelerator.is_main_process:
        _write(teacher, path)
    return outcome


def _write(teacher: Teacher, path: Path) -> None:
    write_directory(
        teacher.model,
        teacher.tokenizer,
        teacher.stored_dtype,
        path,
        teacher.other_dtypes,
        teacher.directory,
    )


def correction_rate(parameters: int) -> float:
    """Return AdamW's peak rate for a teacher of this size: a fifth of a student's."""
    return _SHARE_OF_RATE * peak_rate(parameters)


def fingerprint_of(path: Path, trust_remote_code: bool) -> str | None:
    """Return the fingerprint of a teacher that ``correct_teacher`` wrote; None if it is incomplete."""
    try:
        config = read_config(path, str(path), trust_remote_code)
        return fingerprint(config, weight_files(path, str(path)))
    except (InputError, OSError):
        return None


def read_corrected(teacher: Teacher, path: Path, dtype: torch.dtype, trust_remote_code: bool) -> Teacher:
    """Load the teacher that ``correct_teacher`` wrote, under the name of the original one.

    Args:
        teacher: the original teacher; its memory is freed.
        path: the directory of the corrected one.
        dtype: the dtype of the loaded weights.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        InputError: it cannot be loaded.
    """
    device = teacher.residence.device
    nn.Module.to(teacher.model, "meta")
    found = load_teacher(
        str(path),
        revision=None,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        stays=teacher.stays,
    )
    return replace(
        found,
        id=teacher.id,
        revision=teacher.revision,
        directory=teacher.directory,
        stored_dtype=teacher.stored_dtype,
        other_dtypes=teacher.other_dtypes,
    )


def _is_too_large(teacher: Teacher, needed: int) -> bool:
    """Whether the training's bytes cannot fit into memory; False where free memory cannot be measured."""
    free = free_bytes(teacher.model.device)
    held = sum(p.numel() * p.itemsize for p in teacher.model.parameters())
    return free is not None and needed - held > free


def _too_large(teacher: Teacher, needed: int) -> InputError:
    return InputError(
        "To correct a teacher, its weights, their gradients and two moments have to fit into memory",
        f"those of {teacher.id} take {needed / 1e9:.1f} GB, and {teacher.model.device} has less",
        "Leave --correct-teacher out, or take another --device",
    )
