"""What ranking a teacher costs beside running it."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_passes import DepthSetting, depends_on_states_alone
from evaluators.importance.layer_removal import by_loss, without_each
from evaluators.importance.layer_scores import LAYER_TOKENS
from evaluators.importance.method import Depth, Method
from evaluators.importance.moments import MomentsListener
from evaluators.importance.rank import batches, rank, rank_in_bases, score_layers
from evaluators.metrics.loss import validation_loss
from search.settings.scale import default_device, default_dtype, scale_for
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
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
#: How many times as fast a run ranks as one that ranks anew in each basis on all tokens.
_WHOLE = 2.5
_BASES = (BasisName.COORDINATE, BasisName.WEIGHTED)


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
    real: Path | None = field(default_factory=lambda: real_teacher())
    """The directory of a trained teacher whose whole ranking is measured; None for one of random weights."""
    part: int = 64
    """The whole ranking is measured on one in so many of the tokens of the teacher's scale."""
    real_part: int = 1024
    """The same for the trained one: half an hour of one core at most."""


def real_teacher() -> Path | None:
    """Return the directory that ``SLIMSEARCH_TEACHER`` names, of a Llama, if it does."""
    named = os.environ.get("SLIMSEARCH_TEACHER")
    return Path(named) if named else None


def rank_suite(work: RankWork) -> list[Figure]:
    """Every figure of the suite."""
    bench = Bench(work.teacher, work.blocks, work.block)
    figures = [bench.ranking(work.repeats), bench.removal(work.repeats), whole_ranking(work)]
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


def whole_ranking(work: RankWork) -> Figure:
    """All that a run ranks a teacher by, beside ranking it anew in each basis, in float32 on all tokens.

    Both sides get one in so many of the calibration tokens of the teacher's scale, and so does the sample of
    the layers: a run takes about so many times as much.
    """
    part = work.part if work.real is None else work.real_part
    device = default_device()
    model = random_model(work.teacher, "cpu") if work.real is None else _loaded(work.real)
    scale = scale_for(model.num_parameters())
    sample = max(2, LAYER_TOKENS // part)
    block = min(scale.block, model.config.max_position_embeddings, sample)
    blocks = max(1, scale.calibration_blocks * scale.block // part // block)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(model.config.vocab_size, (blocks, block), generator=generator)
    half = default_dtype(device, model.num_parameters()) == "bfloat16"
    model.to(device)  # type: ignore[arg-type]
    whole = WholeRanking(model, text, max(1, sample // block), half)
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    whole.once()
    ours = clock() - began
    whole.for_each_basis()
    before = clock() - began - ours
    name = f"{whole.words}, 1/{part} of a run: ranked in two bases, s, beside each for itself, in float32"
    return Figure(name, ours, before, before / ours, _WHOLE)


class WholeRanking:
    """The ranking of a run that tries two bases of hidden, with layers by perplexity and moments."""

    def __init__(self, model: PreTrainedModel, text: Tensor, sample: int, bfloat16: bool) -> None:
        self.model, self.text, self.bfloat16 = model, text, bfloat16
        self.axis_map = verified_axis_map(model.config, BasisName.WEIGHTED)
        self.sample = text[:sample]
        self.words = f"{model.num_parameters() / 1e6:.0f}M parameters, {text.numel()} tokens"

    def once(self) -> None:
        """As a run does it: layers on the sample, then one pass for both bases and the moments."""
        method = Method(depth=Depth.PERPLEXITY, bfloat16=self.bfloat16)
        layers = score_layers(self.model, self.axis_map, self.sample, method)
        listener, keys = MomentsListener(self.model, self.axis_map), dict.fromkeys(_BASES, "")
        rank_in_bases(
            self.model,
            self.axis_map,
            self.text,
            keys,
            method=method,
            layers=layers,
            pass_context=listener.on(),
        )
        listener.moments("")

    @torch.no_grad()
    def for_each_basis(self) -> None:
        """The reference: in each basis the moments, all axes, and the layers on all of the text."""
        reuse = depends_on_states_alone(self.model, self.axis_map, self.text)
        setting = DepthSetting(self.model, self.axis_map, batches(self.text), reuse)
        for basis in _BASES:
            listener = MomentsListener(self.model, self.axis_map)
            rank_in_bases(self.model, self.axis_map, self.text, {basis: ""}, pass_context=listener.on())
            without_each(setting, by_loss)
            listener.moments("")


def _loaded(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    return model


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
