"""Teachers, students and texts of random numbers, in the shapes that distillation is measured at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evaluators.distillation.targets.batch import Form, FormName, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.choice import TargetsSetting, choose_form
from evaluators.distillation.targets.live import Hidden
from evaluators.distillation.targets.sparse import Sampled


@dataclass(frozen=True)
class Shape:
    """Which models, and how much text a step reads."""

    teacher: LlamaConfig
    student: LlamaConfig
    blocks: int
    """Blocks a step."""
    block: int
    """T, tokens a block."""
    steps: int
    """Timed in a row, behind one that is not."""

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.blocks * self.block

    @property
    def words(self) -> str:
        """For a row's name."""
        return f"vocabulary {self.teacher.vocab_size}, {self.tokens} tokens"

    def text(self) -> Tensor:
        """(2 × blocks, T) random tokens, which each training reads from the first on, again and again."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(
            0, self.teacher.vocab_size, (2 * self.blocks, self.block), generator=generator, dtype=torch.int32
        )


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def made(config: LlamaConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model as its class initialises it, in evaluation mode."""
    torch.manual_seed(0)
    with device():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model


def teacher_of(shape: Shape) -> PreTrainedModel:
    """In the precision that a search keeps it in: float32 on the host, bfloat16 on a GPU."""
    return made(shape.teacher, torch.bfloat16 if torch.cuda.is_available() else torch.float32)


def accelerator() -> Accelerator:
    """Mixed precision in bfloat16."""
    return Accelerator(cpu=device().type == "cpu", mixed_precision="bf16")


def cached(teacher: PreTrainedModel, text: Tensor, name: FormName, folder: Path) -> Targets:
    """The teacher's targets on a text in one form, on disk.

    Args:
        teacher: runs once, here.
        text: (N, T) tokens.
        name: hidden or sampled.
        folder: for the records.
    """
    form: Form = Hidden(teacher) if name is FormName.HIDDEN else Sampled(teacher)
    targets = CachedTargets(teacher, text, form, folder / name, "", precision=accelerator().autocast)
    targets.fill()
    return targets


def picked(shape: Shape) -> FormName:
    """The form that a run would choose by itself, on a disk with room."""
    student, teacher = (_multiplied(config) for config in (shape.student, shape.teacher))
    setting = TargetsSetting(
        tokens=shape.text().numel(),
        block=shape.block,
        vocabulary=shape.teacher.vocab_size,
        width=shape.teacher.hidden_size,
        student=student,
        teacher=teacher,
        every_logit=False,
    )
    return choose_form("auto", setting, free=10**15)


def _multiplied(config: LlamaConfig) -> int:
    """Weights that a token is multiplied by: all, but of embeddings only a head's."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    read = 0 if config.tie_word_embeddings else model.get_input_embeddings().get_parameter("weight").numel()
    return int(model.num_parameters() - read)


class Marks:
    """The times between marks in seconds: of the wall on a GPU, of the processor on a host."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, *_: object) -> None:
        """Mark this moment, when all work that was begun is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.at.append(clock()())

    def between(self) -> list[float]:
        """Without the time to the first mark."""
        return [end - begin for begin, end in zip(self.at, self.at[1:], strict=False)]


def clock() -> Callable[[], float]:
    """On the host other loads of the machine are met, which are not counted."""
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def unit() -> str:
    """Of ``clock``."""
    return "s" if torch.cuda.is_available() else "CPU s"
