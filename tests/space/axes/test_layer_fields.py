from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DeepseekV3Config, Gemma4TextConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from space.axes.config_fields import with_sizes
from space.axes.layers import per_layer_fields

MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]


def test_a_list_with_one_entry_a_layer() -> None:
    config = Qwen2Config(num_hidden_layers=4, layer_types=MIXED, use_sliding_window=True, max_window_layers=3)
    found = per_layer_fields(config, 4, [0, 2])
    assert found["layer_types"] == ["sliding_attention", "full_attention"]
    assert found["max_window_layers"] == 2
    student = with_sizes(config, found | {"num_hidden_layers": 2})
    assert student.layer_types == found["layer_types"]


def test_a_class_that_does_not_read_the_list_still_wants_its_length() -> None:
    config = LlamaConfig.from_dict({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4})
    assert per_layer_fields(config, 4, [1, 2, 3])["layer_types"] == ["full_attention"] * 3


@pytest.mark.parametrize(("kept", "dense"), [([0, 1, 2], 2), ([1, 3], 1), ([2, 3], 0)])
def test_so_many_first_layers(kept: list[int], dense: int) -> None:
    config = DeepseekV3Config(num_hidden_layers=4, first_k_dense_replace=2)
    assert per_layer_fields(config, 4, kept)["first_k_dense_replace"] == dense


def test_numbers_of_layers_are_counted_anew() -> None:
    config = Qwen3MoeConfig(num_hidden_layers=6, mlp_only_layers=[1, 4])
    assert per_layer_fields(config, 6, [0, 1, 3, 4])["mlp_only_layers"] == [1, 3]
    assert per_layer_fields(config, 6, [0, 2])["mlp_only_layers"] == []


def test_sizes_of_single_layers_go_with_them() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    sizes: dict[str, Any] = {"head_dim": 8, "global_head_dim": 16}
    config = Gemma4TextConfig(num_hidden_layers=6, layer_types=kinds, **sizes)
    found = per_layer_fields(config, 6, [0, 3, 4, 5])
    student = with_sizes(config, found | {"num_hidden_layers": 4})
    assert [layer.head_dim for layer in student.per_layer_config] == [8, 16, 8, 16]


class _Config:
    """Fields that a few classes have, whatever their class."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        return self.fields


@pytest.mark.parametrize(
    ("field", "value", "after"),
    [
        ("hybrid_override_pattern", "M*M-", "MM"),
        ("num_kv_shared_layers", 2, 1),
        ("moe_layer_end_index", 2, 1),
        ("moe_layer_end_index", 1, 0),
        ("moe_layer_end_index", -1, None),
        ("moe_layer_start_index", 1, 1),
        ("no_rope_layers", (1, 1, 1, 0), [1, 1]),
        ("attn_layer_indices", [2, 3], [1]),
        ("layer_norm_eps", 1e-5, None),
        ("initializer_pattern", "normal", None),
        ("sizes", [1, 2, 3, 4], None),
        ("layer_scales", [3, 1], None),
    ],
)
def test_each_form(field: str, value: Any, after: Any) -> None:
    config: Any = _Config(**{field: value})
    assert per_layer_fields(config, 4, [0, 2]).get(field) == after


@given(st.lists(st.sampled_from("ab"), min_size=2, max_size=9), st.data())
def test_an_entry_goes_with_its_layer(entries: list[str], data: st.DataObject) -> None:
    numbers = st.integers(0, len(entries) - 1)
    kept = sorted(data.draw(st.sets(numbers, min_size=1)))
    named = sorted(data.draw(st.sets(numbers, min_size=1)))
    config: Any = _Config(layer_types=entries, mlp_only_layers=named)
    found = per_layer_fields(config, len(entries), kept)
    assert found["layer_types"] == [entries[layer] for layer in kept]
    if len(named) < len(entries):
        assert [kept[place] for place in found["mlp_only_layers"]] == [n for n in named if n in kept]


def test_all_layers_change_nothing() -> None:
    config = Qwen2Config(num_hidden_layers=4, layer_types=MIXED, max_window_layers=3)
    own = config.to_dict()
    assert all(own[name] == value for name, value in per_layer_fields(config, 4, range(4)).items())
