"""The files of a training: best weights, checkpoints, and branches that longer trainings start from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import (
    Position,
    load_checkpoint,
    load_parameters,
    read_metadata,
    read_tensors,
    remove_temporary,
    save_checkpoint,
    whole_parameters,
    write_tensors,
)
from evaluators.distillation.module import Distillation
from evaluators.distillation.nested import NestedDistillation
from evaluators.distillation.schedule import Schedule


class BestWeights:
    """Keeps the weights with the lowest validation loss in a file, with that loss in its metadata.

    So weights that a killed process wrote after its last checkpoint still count as the best.
    """

    def __init__(self, path: Path, key: str, accelerator: Accelerator) -> None:
        """Continue with the file, if it belongs to the training ``key``."""
        self.path, self.key, self.accelerator = path, key, accelerator
        metadata = read_metadata(path) or {}
        own = metadata.get("key") == key
        self.tokens: int | None = metadata["tokens"] if own else None
        self.loss: float = metadata["loss"] if own else math.inf

    def update(self, student: PreTrainedModel, tokens: int, loss: float, *, last: bool) -> None:
        """Keep the student's weights if they are the best so far.

        Args:
            student: the student in its current state.
            tokens: training tokens so far.
            loss: its validation loss.
            last: whether the training ends here; the student then has the weights, and no file is needed.

        Raises:
            OSError: the disk is full.
        """
        if not loss < self.loss:
            return
        self.tokens, self.loss = tokens, loss
        if last:
            return
        main = bool(self.accelerator.is_main_process)
        tensors = dict(whole_parameters(student, keep=main))
        if main:
            write_tensors(self.path, tensors, {"key": self.key, "tokens": tokens, "loss": loss})

    def restore(self, student: PreTrainedModel, tokens: int) -> None:
        """Load the best weights into the student, unless it has them: ``tokens`` are its training tokens."""
        if self.tokens in (None, tokens):
            return
        self.accelerator.wait_for_everyone()
        load_parameters(student, read_tensors(self.path, ""))


#: Least ratio of training time to saving time: saving takes less than a twentieth.
_TRAINING_PER_SAVING = 20


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and how often a training saves checkpoints."""

    path: Path
    key: str
    """Identifies the training: a checkpoint with another key is ignored."""
    seconds: float = 120.0
    """Least seconds between checkpoints, more where saving is slow: it takes less than a twentieth of the
    time. With 0 every step is saved, whatever the cost."""
    best: Path | None = None
    """File for the weights with the lowest validation loss. If set, the student ends with them, and the
    training stops when its validation loss rises."""
    branch: Path | None = None
    """File for the state of a warmup-stable-decay training when its learning rate begins to decay."""
    start: Path | None = None
    """The branch of a shorter training to start from. It is used only if this training would reach the same
    state by itself, so the student ends the same, except that best weights before the branch are lost."""
    stem: str = ""
    """Identifies all that a training and its branches share: everything but the number of tokens."""

    def remove(self) -> None:
        """Delete the files of a finished training, except branches, which other trainings start from."""
        for path in (self.path, self.best):
            if path is not None:
                path.unlink(missing_ok=True)
                remove_temporary(path)


class TrainingFiles:
    """The files of one training."""

    def __init__(
        self,
        files: Checkpointing,
        distillation: Distillation | NestedDistillation,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        blocks: int,
        accelerator: Accelerator,
    ) -> None:
        """Keep the state to save; ``blocks`` is the number of blocks in the targets."""
        assert files.stem or not (files.branch or files.start), "a branch needs the name of its stem"
        self.files, self.distillation, self.optimizer = files, distillation, optimizer
        self.schedule, self.blocks, self.accelerator = schedule, blocks, accelerator
        self.save_seconds = 0.0

    def restore(self) -> Position | None:
        """Restore the last checkpoint; None if there is none."""
        return self._load(self.files.path, self.files.key)

    def restore_branch(self) -> Position | None:
        """Restore a shorter training's branch; None if this training would not reach the same state."""
        path, last = self.files.start, self.schedule.decay_begins
        metadata = None if path is None else read_metadata(path)
        if path is None or metadata is None or last is None or metadata["step"] > last:
            return None
        return self._load(path, self._branch_key(metadata["step"]))

    def save(self, position: Position) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full; the previous checkpoint is unchanged.
        """
        self._save(self.files.path, self.files.key, position)

    def is_due(self, unsaved: float) -> bool:
        """Return whether a checkpoint is due ``unsaved`` seconds after the last one."""
        seconds = self.files.seconds
        return unsaved > (max(seconds, _TRAINING_PER_SAVING * self.save_seconds) if seconds else 0)

    def save_branch(self, position: Position) -> None:
        """Write the branch if the decay begins at this step and the branch does not exist yet."""
        path = self.files.branch
        if path is None or position.step != self.schedule.decay_begins:
            return
        key = self._branch_key(position.step)
        if (read_metadata(path) or {}).get("key") != key:
            self._save(path, key, position)

    def _branch_key(self, step: int) -> str:
        """Return the key that is shared by all trainings in the same state before this step."""
        schedule = self.schedule
        same = {
            "stem": self.files.stem,
            "step": step,
            "blocks": schedule.blocks,
            "block": schedule.block,
            "rate": schedule.peak_rate,
            "warm-up": schedule.warm_up,
            "of": self.blocks if step * schedule.blocks > self.blocks else None,  # None: none is read twice
        }
        return json.dumps(same)

    def _load(self, path: Path, key: str) -> Position | None:
        return load_checkpoint(path, key, self.distillation, self.optimizer, self._extra)

    def _save(self, path: Path, key: str, position: Position) -> None:
        main = bool(self.accelerator.is_main_process)
        save_checkpoint(path, key, position, self.distillation, self.optimizer, self._extra, write=main)

    @property
    def _extra(self) -> Mapping[str, Tensor]:
        return {"alpha": self.distillation.alpha}
