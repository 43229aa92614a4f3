"""Which files a training keeps, and when it goes on from which."""

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
from evaluators.distillation.schedule import Schedule


class BestWeights:
    """Keeps them in a file, which says itself what it holds.

    So one that a killed process wrote after its last checkpoint stays the best that the training had.
    """

    def __init__(self, path: Path, key: str, accelerator: Accelerator) -> None:
        """Go on with what is there of the training named ``key``."""
        self.path, self.key, self.accelerator = path, key, accelerator
        about = read_metadata(path) or {}
        mine = about.get("key") == key
        self.tokens: int | None = about["tokens"] if mine else None
        self.loss: float = about["loss"] if mine else math.inf

    def tell(self, student: PreTrainedModel, tokens: int, loss: float, *, last: bool) -> None:
        """Keep the student's weights if they are better than all before.

        Args:
            student: as it is now.
            tokens: that it has learnt from.
            loss: its validation loss.
            last: whether no training follows, so that the student keeps its weights anyway.

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

    def take(self, student: PreTrainedModel, tokens: int) -> None:
        """Give the student the best weights, unless it has them: those after ``tokens``."""
        if self.tokens in (None, tokens):
            return
        self.accelerator.wait_for_everyone()
        load_parameters(student, read_tensors(self.path, ""))


#: Seconds of training for each second that saving takes: it takes less than a twentieth.
_TIMES_LONGER = 20


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and how often a training is saved."""

    path: Path
    key: str
    """Names the training: a checkpoint of another one is not used."""
    seconds: float = 120.0
    """Between checkpoints, and more where saving is slow: it takes less than a twentieth of the time. With 0
    every step is saved, whatever it takes."""
    best: Path | None = None
    """Of the weights with the lowest validation loss. With it the student ends with them, and a training
    whose validation loss goes up is ended."""
    branch: Path | None = None
    """Where a warm-up-stable-decay training is saved when its rate begins to fall."""
    start: Path | None = None
    """The branch of a shorter training to begin from. It is used if the training would have come to the same
    state by itself: the student ends as if it had, but for a best validation before the branch."""
    stem: str = ""
    """Names what a training and its branches share, which is all but the number of tokens."""

    def remove(self) -> None:
        """Delete what a training that is over has no more use for; branches are there for others."""
        for path in (self.path, self.best):
            if path is not None:
                path.unlink(missing_ok=True)
                remove_temporary(path)


class TrainingFiles:
    """The files of one training."""

    def __init__(
        self,
        files: Checkpointing,
        distillation: Distillation,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        blocks: int,
        accelerator: Accelerator,
    ) -> None:
        """Take the training; blocks are those of its targets."""
        assert files.stem or not (files.branch or files.start), "a branch needs the name of its stem"
        self.files, self.distillation, self.optimizer = files, distillation, optimizer
        self.schedule, self.blocks, self.accelerator = schedule, blocks, accelerator
        self.took = 0.0

    def back(self) -> Position | None:
        """Go to the last checkpoint; None if there is none."""
        return self._load(self.files.path, self.files.key)

    def from_branch(self) -> Position | None:
        """Go to a shorter training's branch; None if there is none that this training would have come to."""
        path, last = self.files.start, self.schedule.decay_begins
        about = None if path is None else read_metadata(path)
        if path is None or about is None or last is None or about["step"] > last:
            return None
        return self._load(path, self._branch_key(about["step"]))

    def save(self, position: Position) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full; the checkpoint before is as it was.
        """
        self._save(self.files.path, self.files.key, position)

    def is_due(self, unsaved: float) -> bool:
        """Whether it is time for a checkpoint, so many seconds after the last."""
        seconds = self.files.seconds
        return unsaved > (max(seconds, _TIMES_LONGER * self.took) if seconds else 0)

    def save_branch(self, position: Position) -> None:
        """Write the branch if this is the step that it belongs to, unless it is there."""
        path = self.files.branch
        if path is None or position.step != self.schedule.decay_begins:
            return
        key = self._branch_key(position.step)
        if (read_metadata(path) or {}).get("key") != key:
            self._save(path, key, position)

    def _branch_key(self, step: int) -> str:
        """Of all trainings that are in the same state before this step."""
        schedule = self.schedule
        same = {
            "stem": self.files.stem,
            "step": step,
            "blocks": schedule.blocks,
            "block": schedule.block,
            "rate": schedule.peak_rate,
            "warm-up": schedule.warm_up,
            "of": self.blocks if step * schedule.blocks > self.blocks else None,  # None: none read twice
        }
        return json.dumps(same)

    def _load(self, path: Path, key: str) -> Position | None:
        return load_checkpoint(path, key, self.distillation, self.optimizer, self._also)

    def _save(self, path: Path, key: str, position: Position) -> None:
        main = bool(self.accelerator.is_main_process)
        save_checkpoint(path, key, position, self.distillation, self.optimizer, self._also, write=main)

    @property
    def _also(self) -> Mapping[str, Tensor]:
        return {"alpha": self.distillation.alpha}
