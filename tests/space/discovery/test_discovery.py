from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, Coupling, TensorRoles, build
from space.discovery.discovery import discover
from space.discovery.sizing import HiddenTie
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from tests.contracts.tiny import SAMPLE, TINY
from tests.space.models import QWEN3_8B, SMALL

D, F, H, K, V = "hidden", "mlp", "kv_heads×heads×6", "kv_heads×6", "48"
LLAMA = {
    "model.embed_tokens.weight": (V, D),
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
    "lm_head.weight": (V, D),
}
BIASES = {"self_attn.q_proj.bias": (H,), "self_attn.k_proj.bias": (K,), "self_attn.v_proj.bias": (K,)}
NORMS = {"self_attn.q_norm.weight": ("6",), "self_attn.k_norm.weight": ("6",)}
MORE = {"self_attn.o_proj.bias": (D,)}


def map_of(config: PretrainedConfig, **how: Any) -> AxisMap:
    return discover(config, **how).axis_map


def forms(axis_map: AxisMap) -> dict[str, tuple[str, ...]]:
    """Dimensions by name, without the layers' numbers."""
    prefix = axis_map.stacks[0]
    return {
        t.name if t.layer is None else t.name.removeprefix(f"{prefix}{t.layer}."): tuple(
            map(str, t.dimensions)
        )
        for t in axis_map.tensors
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TINY["llama"]["plain"], LLAMA),
        (TINY["mistral"]["window"], LLAMA),
        (TINY["qwen3"]["mixed-layers-biases"], LLAMA | BIASES | NORMS | MORE),
    ],
    ids=["llama", "mistral", "qwen3"],
)
def test_every_dimension_has_its_axis(config: PretrainedConfig, expected: dict[str, tuple[str, ...]]) -> None:
    axis_map = map_of(config)
    assert axis_map.stacks == ("model.layers.",)
    assert forms(axis_map) == expected
    inside = [name for name in expected if not name.startswith(("model", "lm_head"))]
    assert len(axis_map.tensors) == len(inside) * config.num_hidden_layers + len(expected) - len(inside)
    assert {tensor.layer for tensor in axis_map.tensors} == {None, *range(config.num_hidden_layers)}
    assert axis_map.roles == TensorRoles("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")


def test_the_sizes_are_the_teacher_s() -> None:
    axis_map = map_of(SMALL)
    assert axis_map.teacher == Architecture(24, 44, 4, 2, 3)
    assert axis_map.head_dim == 8
    assert axis_map.kinds == (0, 0, 0)
    assert axis_map.fields == {
        Axis.HIDDEN: ("hidden_size",),
        Axis.MLP: ("intermediate_size",),
        Axis.HEADS: ("num_attention_heads",),
        Axis.KV_HEADS: ("num_key_value_heads",),
        Axis.LAYERS: ("num_hidden_layers",),
    }
    assert not discover(SMALL).open
    assert not axis_map.couplings
    assert not axis_map.refused


@pytest.mark.parametrize("model_type", SAMPLE)
def test_the_map_has_the_shapes_of_the_model(model_type: str) -> None:
    config = tiny_config(CONFIG_MAPPING[model_type]())
    model = build(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    axis_map = map_of(config)
    mapped = {t.name: tuple(d.length for d in t.dimensions) for t in axis_map.tensors}
    assert {name: shape for name, shape in mapped.items() if name not in axis_map.buffers} == shapes
    assert axis_map.buffers <= dict(model.named_buffers()).keys()


def test_a_tied_weight_stands_once() -> None:
    axis_map = map_of(TINY["llama"]["tied-biases"])
    names = [tensor.name for tensor in axis_map.tensors]
    assert "lm_head.weight" not in names
    assert axis_map.roles.embedding == axis_map.roles.head == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1), 8),
        (LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, head_dim=6), 6),
        (Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1), 8),
        (QWEN3_8B, 128),
    ],
)
def test_the_size_of_a_head_is_the_config_s_or_a_share_of_hidden(
    config: PretrainedConfig, head_dim: int
) -> None:
    axis_map = map_of(config)
    assert axis_map.head_dim == axis_map.config.head_dim == head_dim
    assert {str(t.dimensions[0]) for t in axis_map.tensors if "q_proj.weight" in t.name} == {
        f"kv_heads×heads×{head_dim}"
    }


def test_sizes_that_a_class_cannot_double_one_by_one() -> None:
    """Llama wants hidden to be a multiple of the heads: 72 is one of 8, not of 16."""
    config = LlamaConfig(
        hidden_size=72,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=4,
    )
    assert map_of(config).teacher == Architecture(72, 8, 8, 2, 1)


class TestFusedTensors:
    PHI3 = Phi3Config(
        vocab_size=9,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=None,
    )

    def test_what_shapes_leave_open_is_listed(self) -> None:
        draft = discover(self.PHI3)
        opened = {name.rpartition("layers.*.")[2]: layouts for (name, _), layouts in draft.open.items()}
        assert opened.keys() == {"self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"}
        assert [str(layout) for layout in opened["mlp.gate_up_proj.weight"]] == ["(mlp + mlp)", "mlp×2"]
        fused = [str(layout) for layout in opened["self_attn.qkv_proj.weight"]]
        assert fused[0] == "(kv_heads×heads×8 + kv_heads×8 + kv_heads×8)"
        assert len(fused) == len(set(fused)) == 7

    def test_a_choice_is_taken(self) -> None:
        spot = ("model.layers.*.mlp.gate_up_proj.weight", 0)
        chosen = forms(map_of(self.PHI3, choices={spot: 1}))
        assert chosen["mlp.gate_up_proj.weight"][0] == "mlp×2"
        assert chosen["self_attn.qkv_proj.weight"] == forms(map_of(self.PHI3))["self_attn.qkv_proj.weight"]

    def test_experts_in_one_tensor(self) -> None:
        axis_map = map_of(tiny_config(MixtralConfig()))
        form = forms(axis_map)
        assert form["mlp.experts.down_proj"] == ("1×experts", "hidden", "expert_mlp")
        assert form["mlp.gate.weight"] == ("1×experts", "hidden")
        assert axis_map.teacher.mlp == 0


class TestCouplings:
    def test_heads_follow_hidden_where_a_head_s_size_is_fixed(self) -> None:
        config = tiny_config(CONFIG_MAPPING["gpt2"]())
        axis_map = map_of(config, attention=frozenset({"transformer.h.*.attn.c_proj"}))
        assert axis_map.couplings == (
            Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, axis_map.head_dim)),
            Coupling(Axis.KV_HEADS, Axis.HEADS, Fraction(1)),
        )
        form = forms(axis_map)
        assert form["attn.c_proj.weight"] == (f"kv_heads×heads×{axis_map.head_dim}", "hidden")
        assert form["mlp.c_proj.weight"] == ("mlp", "hidden")
        assert form["ln_1.bias"] == ("hidden",)

    def test_or_the_size_of_a_head_follows_hidden(self) -> None:
        config = tiny_config(BloomConfig())
        attention = frozenset({"transformer.h.*.self_attention.dense"})
        axis_map = map_of(config, attention=attention, tie=HiddenTie.HEAD_DIM)
        assert Coupling(Axis.HEAD_DIM, Axis.HIDDEN, Fraction(1, 6)) in axis_map.couplings
        assert axis_map.refused == {Axis.HEADS: "hidden moves with the size of its heads instead"}
        assert Axis.HEADS not in axis_map.fields

    def test_one_key_for_all_heads_stays(self) -> None:
        axis_map = map_of(
            tiny_config(FalconConfig()), attention=frozenset({"transformer.h.*.self_attention.dense"})
        )
        assert axis_map.teacher.kv_heads == 1
        assert axis_map.refused[Axis.KV_HEADS] == "all heads share one"

    def test_a_shared_expert_is_a_multiple_of_the_others(self) -> None:
        config = DeepseekV3Config(n_shared_experts=2)
        axis_map = map_of(tiny_config(config))
        assert Coupling(Axis.SHARED_MLP, Axis.EXPERT_MLP, Fraction(2)) in axis_map.couplings
        assert axis_map.teacher.shared_mlp == 2 * axis_map.teacher.expert_mlp


class TestRefusals:
    @pytest.mark.parametrize("config", [MambaConfig()], ids=["mamba"])
    def test_sizes_that_no_field_names(self, config: PretrainedConfig) -> None:
        with pytest.raises(InputError) as refusal:
            discover(config)
        assert str(refusal.value) == (
            "The config of a teacher has to name its sizes; in 'mamba', no known field gives heads. "
            "Choose another teacher with --model."
        )

    @pytest.mark.parametrize("own", [{"intermediate_size": 24}, {"head_dim": 8, "skip": ["mlp"]}])
    def test_layers_of_sizes_of_their_own(self, own: dict[str, Any]) -> None:
        sizes: dict[str, Any] = {"num_hidden_layers": 3, "per_layer_config": {1: own}}
        with pytest.raises(
            InputError, match="The layers of a teacher have to be alike in size; those of this"
        ):
            discover(LlamaConfig(**sizes))

    def test_heads_of_their_own_sizes_stay(self) -> None:
        kinds = ["sliding_attention", "full_attention"] * 2
        sizes: dict[str, Any] = TINY | {
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
        }
        config = Gemma4TextConfig(**sizes, layer_types=kinds)
        axis_map = discover(config).axis_map
        assert {Axis.HEADS, Axis.KV_HEADS} <= axis_map.refused.keys()
        assert {Axis.HIDDEN, Axis.MLP} <= set(axis_map.free)
        queries = [t.dimensions[0].length for t in axis_map.tensors if t.module.endswith("q_proj")]
        assert queries == [32, 64, 32, 64]

    @pytest.mark.parametrize(
        ("shapes", "axis", "why"),
        [
            (
                lambda c: {"layers.0.w": (c.intermediate_size + 1,), "layers.0.v": (c.intermediate_size,)},
                Axis.MLP,
                "layers.*.w moves with it in an unknown way",
            ),
            (
                lambda c: {"layers.0.wide" if c.hidden_size > 9 else "layers.0.narrow": (1,)},
                Axis.HIDDEN,
                "parameters appear or vanish with its size",
            ),
        ],
        ids=["offset", "vanishing"],
    )
    def test_an_axis_that_the_map_cannot_hold(
        self, shapes: Any, axis: Axis, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("space.discovery.probing.build", _model_of(shapes))
        config = Qwen3Config(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
        assert map_of(config).refused[axis] == why

    def test_layers_that_stand_in_no_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes = {f"layers.{number}.w": (3,) for number in range(2)}
        monkeypatch.setattr("space.discovery.probing.build", _model_of(lambda _: shapes))
        config = Qwen3Config(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
        with pytest.raises(InputError, match="in 'qwen3', no list of 1 was found"):
            discover(config)


class _Strange(nn.Module):
    """Parameters of any names and shapes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta")))

    def get_input_embeddings(self) -> None:
        return None

    get_output_embeddings = get_input_embeddings


def _model_of(shapes: Any) -> Any:
    return lambda config: _Strange(shapes(config))
