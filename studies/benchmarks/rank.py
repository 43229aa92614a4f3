"""What ranking a teacher costs beside running it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_passes import DepthSetting, depends_on_states_alone
from evaluators.importance.layer_removal import by_loss, without_each
from evaluators.importance.rank import batches, rank
from evaluators.metrics.loss import validation_loss
from space.axes.axis_map import AxisMap
from space.verification.verification import verified_axis_map
from studies.benchmarks.figure import Figure, in_turns
from studies.benchmarks.space import LLAMA_8B

#: 42 million parameters, in which layers cost as much beside the head as in large teachers.
TWELVE_LAYERS = LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
)
#: Least ratio of a bare forward pass to the ranking pass, and of naive to reused passes with L layers.
_RANKING = 1.3


@dataclass(frozen=True)
class RankWork:
    """How much is measured."""

    teacher: LlamaConfig = field(default_factory=lambda: TWELVE_LAYERS)
    """With random weights, on the GPU if there is one."""
    blocks: int = 8
    """Blocks of the calibration set."""
    block: int = 256
    """Tokens of a block."""
    repeats: int = 3
    """Each figure is the median of so many."""
    large: bool = field(default_factory=torch.cuda.is_available)
    """Whether a teacher of the shape of Llama 8B is measured, too: it needs a GPU of 40 GB."""
    large_blocks: int = 1024
    """Blocks that the large one is ranked on."""


def rank_suite(work: RankWork) -> list[Figure]:
    """Every figure of the suite."""
    bench = Bench(work.teacher, work.blocks, work.block)
    figures = [bench.ranking(work.repeats), bench.removal(work.repeats)]
    if work.large:
        whole = Bench(LLAMA_8B, work.large_blocks, work.block)
        figures.append(whole.ranking(repeats=1))
        figures.append(Bench(LLAMA_8B, 16, work.block, whole.model).removal(repeats=1))
    return figures


class Bench:
    """A teacher of random weights and a text of random tokens."""

    def __init__(
        self, config: LlamaConfig, blocks: int, block: int, model: PreTrainedModel | None = None
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # On the host passes take long enough to meet other loads of the machine, which are not counted.
        self.clock, self.unit = (
            (time.perf_counter, "s") if self.device == "cuda" else (time.process_time, "CPU s")
        )
        self.model = random_model(config, self.device) if model is None else model
        self.axis_map: AxisMap = verified_axis_map(config)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, config.vocab_size, (blocks, block), generator=generator)
        self.words = f"{config.num_hidden_layers} layers × {config.hidden_size}, {self.tokens.numel()} tokens"

    def ranking(self, repeats: int) -> Figure:
        """The ranking pass beside a bare forward pass over the same tokens, in the same batches."""
        ours, bare = in_turns(
            self._waited(lambda: rank(self.model, self.axis_map, self.tokens, "")),
            self._waited(lambda: _forward(self.model, self.tokens)),
            repeats,
            self.clock,
        )
        name = f"{self.words}: ranked, {self.unit}, beside a forward pass"
        return Figure(name, ours, bare, bare / ours, 1 / _RANKING)

    def removal(self, repeats: int) -> Figure:
        """Loss without each of L layers beside L losses of teachers that lack the layer."""
        layers = self.axis_map.teacher.layers
        ours, naive = in_turns(self._waited(self._removal), self._waited(self._naive), repeats, self.clock)
        name = f"{self.words}: loss without each layer, {self.unit}, beside as many forward passes"
        return Figure(name, ours, naive, naive / ours, 1 / (0.5 + 2 / layers))

    @torch.no_grad()
    def _removal(self) -> Tensor:
        reuse = depends_on_states_alone(self.model, self.axis_map, self.tokens)
        return without_each(DepthSetting(self.model, self.axis_map, batches(self.tokens), reuse), by_loss)

    def _naive(self) -> list[float]:
        return [
            validation_loss(without_layer(self.model, layer), self.tokens)
            for layer in range(self.axis_map.teacher.layers)
        ]

    def _waited(self, work: Callable[[], object]) -> Callable[[], None]:
        """Work that is over when it returns."""

        def waited() -> None:
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return waited


def random_model(config: LlamaConfig, device: str) -> PreTrainedModel:
    """A teacher as its class initialises it: float32 on the host, bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model


@torch.no_grad()
def _forward(model: PreTrainedModel, tokens: Tensor) -> None:
    for batch in batches(tokens):
        final_states(model, batch.to(model.device, torch.long))


def without_layer(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """A Llama that shares its weights with another and has one layer less."""
    shell, inner = _shell(model), _shell(model.get_submodule("model"))
    layers = list(model.get_submodule("model.layers").children())
    inner.layers = nn.ModuleList(layers[:layer] + layers[layer + 1 :])
    inner.config = copy.copy(model.config)
    inner.config.num_hidden_layers = len(layers) - 1
    shell.model = inner
    less: PreTrainedModel = shell
    return less


def _shell(module: nn.Module) -> Any:
    """A module with the same children, which may be exchanged."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell
