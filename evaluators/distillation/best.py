"""The weights with the lowest validation loss of a training."""

from __future__ import annotations

import math
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import (
    put_parameters,
    read_about,
    read_tensors,
    whole_parameters,
    write_tensors,
)


class Best:
    """Keeps them in a file, which says itself what it holds.

    So one that a killed process wrote after its last checkpoint stays the best that the training had.
    """

    def __init__(self, path: Path, key: str, accelerator: Accelerator) -> None:
        """Go on with what is there of the training named ``key``."""
        self.path, self.key, self.accelerator = path, key, accelerator
        about = read_about(path) or {}
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
        put_parameters(student, read_tensors(self.path, ""))
