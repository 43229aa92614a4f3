"""A short training on random tokens: eight steps of four blocks, and targets that remember."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Batch
from evaluators.distillation.targets.live import LiveTargets
from evaluators.metrics.loss import validation_loss
from tests.evaluators.tiny_models import random_tokens, tiny_model

BLOCK, BLOCKS_A_STEP, STEPS = 6, 4, 8
TOKENS = random_tokens(10, BLOCK)
VALIDATION = random_tokens(3, BLOCK, seed=1)


class Recorded(LiveTargets):
    """Targets that remember which blocks were asked for, and whether autocast was on."""

    def __init__(self, tokens: Tensor = TOKENS) -> None:
        super().__init__(tiny_model(seed=3), tokens)
        self.asked: list[list[int]] = []
        self.autocast: set[bool] = set()

    def batch(self, numbers: Tensor) -> Batch:
        self.asked.append(numbers.tolist())
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return super().batch(numbers)


def schedule(steps: int = STEPS, blocks: int = BLOCKS_A_STEP, peak_rate: float = 0.01) -> Schedule:
    return Schedule(tokens=steps * blocks * BLOCK, blocks=blocks, block=BLOCK, peak_rate=peak_rate)


def loss_of(model: PreTrainedModel) -> float:
    return validation_loss(model, VALIDATION)
