from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import LlamaConfig, Phi3Config, PretrainedConfig, Qwen2Config, Qwen3Config

from space.architecture import Architecture, Axis
from space.axis_map import Dimension, build, discover, layer_modules, with_sizes
from space.families import FAMILIES, Family
from space.input_error import InputError
from tests.contracts.tiny import TINY
from tests.space.models import QWEN3_8B, SMALL

D, F, H, K = Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS
LLAMA = {
    "model.embed_tokens.weight": (None, D),
    "self_attn.q_proj.weight": (H, D),
    "self_attn.k_proj.weight": (K, D),
    "self_attn.v_proj.weight": (K, D),
    "self_attn.o_proj.weight": (D, H),
    "mlp.gate_proj.weight": (F, D),
    "mlp.up_proj.weight": (F, D),
    "mlp.down_proj.weight": (D, F),
    "input_layernorm.weight": (D,),
    "post_attention_layernorm.weight": (D,),
    "model.norm.weight": (D,),
    "lm_head.weight": (None, D),
}
BIASES = {"self_attn.q_proj.bias": (H,), "self_attn.k_proj.bias": (K,), "self_attn.v_proj.bias": (K,)}
NORMS = {"self_attn.q_norm.weight": (None,), "self_attn.k_norm.weight": (None,)}
MORE = {"self_attn.o_proj.bias": (D,)}


@pytest.mark.parametrize(
    ("config", "axes"),
    [
        (TINY["llama"]["plain"], LLAMA),
        (TINY["mistral"]["window"], LLAMA),
        (TINY["qwen2"]["mixed-layers"], LLAMA | BIASES),
        (TINY["qwen3"]["mixed-layers-biases"], LLAMA | BIASES | NORMS | MORE),
    ],
    ids=["llama", "mistral", "qwen2", "qwen3"],
)
def test_every_dimension_has_its_axis(config: PretrainedConfig, axes: dict[str, tuple[Axis | None]]) -> None:
    axis_map = discover(config)
    assert axis_map.stack == "model.layers."
    for tensor in axis_map.tensors:
        name = (
            tensor.name if tensor.layer is None else tensor.name.removeprefix(f"model.layers.{tensor.layer}.")
        )
        assert tensor.axes == axes[name]
    inside = [name for name in axes if not name.startswith(("model", "lm_head"))]
    assert len(axis_map.tensors) == len(inside) * config.num_hidden_layers + len(axes) - len(inside)
    assert {tensor.layer for tensor in axis_map.tensors} == {None, *range(config.num_hidden_layers)}


def test_dimensions_hold_units_in_rows() -> None:
    axis_map = discover(SMALL)
    assert axis_map.teacher == Architecture(24, 44, 4, 2, 3)
    assert axis_map.head_dim == 8
    query, embedding = axis_map.named(H, D)[0], axis_map.named(None, D)[0]
    assert query.dimensions == (Dimension(H, 4, 8), Dimension(D, 24, 1))
    assert [dimension.length for dimension in query.dimensions] == [32, 24]
    assert embedding.dimensions == (Dimension(None, 50, 1), Dimension(D, 24, 1))
    assert query.module == "model.layers.0.self_attn.q_proj"
    assert [tensor.layer for tensor in axis_map.named(D, F)] == [0, 1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_has_the_shapes_of_the_model(family: str) -> None:
    for config in TINY[family].values():
        shapes = {name: tuple(parameter.shape) for name, parameter in build(config).named_parameters()}
        mapped = discover(config).tensors
        assert {t.name: tuple(d.length for d in t.dimensions) for t in mapped} == shapes


def test_a_tied_weight_stands_once() -> None:
    names = [tensor.name for tensor in discover(TINY["llama"]["tied-biases"]).tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1), 8),
        (LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, head_dim=6), 6),
        (
            Qwen2Config(
                hidden_size=32,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=1,
                vocab_size=9,
            ),
            8,
        ),
        (QWEN3_8B, 128),
    ],
)
def test_the_size_of_a_head_is_the_config_s_or_a_share_of_hidden(
    config: PretrainedConfig, head_dim: int
) -> None:
    axis_map = discover(config)
    assert axis_map.head_dim == axis_map.config.head_dim == head_dim
    assert {tensor.dimensions[0].stride for tensor in axis_map.named(H, D)} == {head_dim}


def test_sizes_that_a_class_cannot_double_one_by_one() -> None:
    """Llama wants hidden to be a multiple of the heads: 72 is one of 8, not of 16."""
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=72,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=4,
    )
    axis_map = discover(config)
    assert axis_map.teacher == Architecture(72, 8, 8, 2, 1)
    assert axis_map.named(H, D)[0].dimensions == (Dimension(H, 8, 4), Dimension(D, 72, 1))


class TestWithSizes:
    def test_it_changes_what_is_named_and_nothing_else(self) -> None:
        config = with_sizes(SMALL, {"hidden_size": 16})
        assert isinstance(config, LlamaConfig)
        assert config.to_dict() == SMALL.to_dict() | {"hidden_size": 16}
        assert SMALL.hidden_size == 24

    def test_the_class_keeps_its_rules(self) -> None:
        with pytest.raises(StrictDataclassError, match="not a multiple of the number of attention heads"):
            with_sizes(SMALL, {"hidden_size": 22})


def test_layers_are_found_in_a_built_model() -> None:
    model = build(SMALL)
    layers = layer_modules(model, discover(SMALL))
    assert layers == list(model.get_submodule("model.layers").children())
    assert all(parameter.is_meta for parameter in model.parameters())


def unclear(axis: str, model_type: str, what: str) -> str:
    return (
        f"Every axis of a teacher has to be told from its shapes; {axis} is not; in {model_type!r}, {what}. "
        "Choose another teacher with --model."
    )


class TestRefusals:
    def test_layers_of_different_sizes(self) -> None:
        sizes: dict[str, Any] = {"num_hidden_layers": 3, "per_layer_config": {1: {"intermediate_size": 24}}}
        with pytest.raises(InputError) as refusal:
            discover(LlamaConfig(**sizes))
        assert str(refusal.value) == unclear("layers", "llama", "the layers differ in size")

    def test_a_dimension_of_two_axes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(FAMILIES, "phi3", Family("phi3"))
        config = Phi3Config(
            vocab_size=9,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        with pytest.raises(InputError) as refusal:
            discover(config)
        what = "model.layers.0.self_attn.qkv_proj.weight moves with heads and kv_heads at once"
        assert str(refusal.value) == unclear("heads", "phi3", what)

    @pytest.mark.parametrize(
        ("shapes", "axis", "what"),
        [
            (
                lambda c: {"layers.0.w": (c.intermediate_size + 1,)},
                "mlp",
                "dimension 0 of layers.0.w is no multiple of its size",
            ),
            (
                lambda c: {f"layers.{i}.w": (c.hidden_size,) for i in range(2)},
                "layers",
                "0 stacks of 1 layers were found",
            ),
            (
                lambda c: {f"{stack}.0.w": (c.hidden_size,) for stack in "ab"},
                "layers",
                "2 stacks of 1 layers were found",
            ),
            (
                lambda c: {"layers.0.wide" if c.hidden_size > 9 else "layers.0.narrow": (1,)},
                "hidden",
                "parameters appear or vanish with its size",
            ),
        ],
        ids=["offset", "too-many-layers", "two-stacks", "vanishing"],
    )
    def test_a_class_that_the_map_cannot_hold(
        self, shapes: Any, axis: str, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def strange(config: PretrainedConfig) -> nn.Module:
            model = nn.Module()
            for name, shape in shapes(config).items():
                *path, last = name.split(".")
                place = model
                for part in path:
                    place = place.__dict__["_modules"].setdefault(part, nn.Module())
                place.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta")))
            return model

        monkeypatch.setattr("space.axis_map.build", strange)
        config = Qwen3Config(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
        with pytest.raises(InputError) as refusal:
            discover(config)
        assert str(refusal.value) == unclear(axis, "qwen3", what)
