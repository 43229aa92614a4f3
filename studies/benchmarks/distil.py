"""What distillation costs: a step, its memory, and its loss, each beside a stated reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig

from studies.benchmarks.distil_gpu import LARGE, LargeWork, large_figures
from studies.benchmarks.distil_loss import LossWork, loss_figures
from studies.benchmarks.distil_models import Shape
from studies.benchmarks.distil_peers import peer_figures
from studies.benchmarks.distil_steps import step_figures
from studies.benchmarks.figure import Figure
from studies.benchmarks.rank import TWELVE_LAYERS


def smaller(teacher: LlamaConfig, layers: int, mlp: int) -> LlamaConfig:
    """A student with fewer layers and narrower MLPs."""
    student = copy.deepcopy(teacher)
    student.num_hidden_layers, student.intermediate_size = layers, mlp
    return student


def of_vocabulary(config: LlamaConfig, vocabulary: int) -> LlamaConfig:
    """The same with another vocabulary and one matrix for embedding and head."""
    other = copy.deepcopy(config)
    other.vocab_size, other.tie_word_embeddings = vocabulary, True
    return other


#: 20 million parameters, half of the teacher's.
HALF = smaller(TWELVE_LAYERS, 6, 1216)
#: A step of few tokens keeps no GPU busy.
_BLOCKS = 64 if torch.cuda.is_available() else 4
#: In a step of these, layers cost as much beside the head as in large models.
STEP = Shape(TWELVE_LAYERS, HALF, blocks=_BLOCKS, block=512, steps=3)
#: As real vocabularies go, which is where memory goes.
WIDE = Shape(
    of_vocabulary(TWELVE_LAYERS, 32_768), of_vocabulary(HALF, 32_768), blocks=_BLOCKS, block=512, steps=3
)


@dataclass(frozen=True)
class DistilWork:
    """How much is measured."""

    step: Shape = field(default_factory=lambda: STEP)
    """What a step is timed with."""
    peers: tuple[Shape, ...] = field(default_factory=lambda: (STEP, WIDE))
    """What is trained beside the peers."""
    turns: int = 2
    """Of each side, beside the peers."""
    loss: LossWork = field(default_factory=LossWork)
    rounds: int = 3
    """How often all take their turn."""
    large: LargeWork | None = field(default_factory=lambda: LARGE if torch.cuda.is_available() else None)
    """What is measured on a GPU of 140 GB, if at all."""


def distil_suite(work: DistilWork) -> list[Figure]:
    """Every figure of the suite."""
    figures = step_figures(work.step, work.rounds)
    for shape in work.peers:
        figures += peer_figures(shape, work.turns)
    figures += loss_figures(work.loss)
    return figures if work.large is None else figures + large_figures(work.large)
