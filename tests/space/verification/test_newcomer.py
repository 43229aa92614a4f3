"""A class that no list names, built to differ from all others, is mapped and cut like any other.

Values, keys and queries are fused in that order, gates and ups alternate, embeddings are multiplied by the
fourth root of hidden and logits divided by hidden, and every second layer looks back only a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PretrainedConfig
from transformers import PreTrainedModel as Pretrained
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from space.axes.architecture import Axis
from tests.verified_once import verify_anew

#: As outputs name the cache: ``past_key_values`` until transformers 5.23.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class OddConfig(PretrainedConfig):
    model_type = "odd_newcomer"
    keys_to_ignore_at_inference = (CACHE,)

    vocab_size: int = 900
    hidden_size: int = 96
    intermediate_size: int = 160
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 12
    sliding_window: int = 4
    layer_types: list[str] | None = None

    def __post_init__(self, **keywords: Any) -> None:
        if self.layer_types is None:
            kinds = ("sliding_attention", "full_attention")
            self.layer_types = [kinds[layer % 2] for layer in range(self.num_hidden_layers)]
        super().__post_init__(**keywords)  # type: ignore[no-untyped-call]


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-3)


class Mixer(nn.Module):
    def __init__(self, config: OddConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, config.sliding_window
        self.near = config.layer_types[layer] == "sliding_attention"  # type: ignore[index]
        self.heads, self.kv, self.size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.vkq = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv) * self.size, bias=True)
        self.back = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, states: Tensor, cache: Any) -> Tensor:
        batch, tokens, _ = states.shape
        rows = [self.kv * self.size, self.kv * self.size, self.heads * self.size]
        v, k, q = (
            part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in self.vkq(states).split(rows, -1)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        group = self.heads // self.kv
        scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) / self.size**0.5
        last = torch.arange(k.shape[2] - tokens, k.shape[2])[:, None] - torch.arange(k.shape[2])
        scores = scores.masked_fill((last < 0) | ((last >= self.window) & self.near), float("-inf"))
        mixed = scores.softmax(-1) @ v.repeat_interleave(group, 1)
        back: Tensor = self.back(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return back


class Layer(nn.Module):
    def __init__(self, config: OddConfig, layer: int) -> None:
        super().__init__()
        self.one, self.two = Norm(config.hidden_size), Norm(config.hidden_size)
        self.mixer = Mixer(config, layer)
        self.wide = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.slim = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: Tensor, cache: Any) -> Tensor:
        states = states + self.mixer(self.one(states), cache)
        wide = self.wide(self.two(states))
        down: Tensor = self.slim(F.silu(wide[..., ::2]) * wide[..., 1::2])
        return states + down


class OddBase(Pretrained):
    config_class = OddConfig
    base_model_prefix = "trunk"

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the tests give weights of their own."""


class OddTrunk(OddBase):
    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        self.floors = nn.ModuleList(Layer(config, n) for n in range(config.num_hidden_layers))
        self.end = Norm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(
        self,
        input_ids: Tensor,
        cache: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        states = self.table(input_ids) * self.config.hidden_size**0.25
        for floor in self.floors:
            states = floor(states, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.end(states), **{CACHE: cache})


class OddForCausalLM(OddBase, GenerationMixin):
    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.trunk = OddTrunk(config)
        self.words = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.table

    def get_output_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self, input_ids: Tensor, use_cache: bool | None = None, **keywords: Any
    ) -> CausalLMOutputWithPast:
        inner = self.trunk(input_ids, use_cache=use_cache, **keywords)
        logits = self.words(inner.last_hidden_state) * (96 / self.config.hidden_size)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: inner[CACHE] if use_cache else None})


@pytest.fixture
def registered() -> Iterator[None]:
    AutoConfig.register("odd_newcomer", OddConfig)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM)
    yield
    CONFIG_MAPPING._extra_content.pop("odd_newcomer")
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(OddConfig)


@pytest.mark.usefixtures("registered")
def test_a_class_that_nobody_named_is_cut_along_every_axis() -> None:
    found = verify_anew(OddConfig())
    assert found.small.refused == {}
    assert found.small.free == (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS, Axis.HEAD_DIM)


@pytest.mark.usefixtures("registered")
@pytest.mark.slow
def test_what_shapes_do_not_show_was_found_by_trying() -> None:
    found = verify_anew(OddConfig())
    layouts = {tensor.name: str(tensor.dimensions[0]) for tensor in found.small.tensors}
    assert layouts["trunk.floors.0.wide.weight"] == "mlp×2"
    group = "kv_heads×head_dim"
    assert layouts["trunk.floors.0.mixer.vkq.weight"] == f"({group} + {group} + kv_heads×heads×head_dim)"
    assert (found.scales.embedding, found.scales.head) == (0.25, -1.0)
