"""Sizes between rounds: the class allows them, nothing grows again, and no more goes than was asked for."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, LlamaConfig

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, build
from space.cutting.extraction import student_config
from space.cutting.rounds import architectures_between
from space.discovery.discovery import discover
from space.discovery.tiny import tiny_config
from space.verification.contract import random_architecture
from space.verification.reload import captured_warnings
from tests.contracts.tiny import each

_MIXING = {"gpt2": frozenset({"transformer.h.*.attn.c_proj"})}


@cache
def small(model_type: str) -> AxisMap:
    """By shapes alone, which settles the sizes."""
    with captured_warnings():
        config = tiny_config(CONFIG_MAPPING[model_type]())
        return discover(config, attention=_MIXING.get(model_type, frozenset())).axis_map


@pytest.mark.parametrize("model_type", each("llama", "gpt2", "qwen2_moe", "falcon"))
def test_sizes_go_down_to_the_target(model_type: str) -> None:
    axis_map = small(model_type)

    @given(st.randoms(use_true_random=False), st.integers(1, 5))
    @settings(max_examples=15, deadline=None)
    def holds(rng: random.Random, rounds: int) -> None:
        drawn = random_architecture(axis_map, axis_map.free, rng)
        assume(drawn is not None)
        assert drawn is not None
        target, teacher = drawn[0], axis_map.teacher
        sizes = architectures_between(axis_map, target, rounds)
        assert len(sizes) == rounds
        assert sizes[-1] == target
        for number, (before, after) in enumerate(zip([teacher, *sizes], sizes, strict=False), 1):
            assert all(before[axis] >= after[axis] for axis in Axis)
            for axis in Axis:
                lost, all_of_it = teacher[axis] - after[axis], teacher[axis] - target[axis]
                assert lost * rounds <= number * all_of_it
            if after.kv_heads:
                assert after.heads % after.kv_heads == 0
                assert before.heads // before.kv_heads >= after.heads // after.kv_heads
            whole = replace(after, layers=teacher.layers)
            build(student_config(axis_map, whole, range(teacher.layers)))

    holds()


def test_each_round_takes_its_share_where_the_class_allows() -> None:
    """Llama wants hidden to be a multiple of the heads: 56 is none of 16, and 40 none of 12."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=8,
    )
    axis_map = discover(config).axis_map
    target = replace(axis_map.teacher, hidden=32, mlp=64, heads=8, layers=4)
    found = architectures_between(axis_map, target, 4)
    assert [sizes.label for sizes in found] == [
        "h64-m112-q16-kv4-l7",
        "h48-m96-q12-kv4-l6",
        "h48-m80-q12-kv4-l5",
        "h32-m64-q8-kv4-l4",
    ]


def test_groups_share_out_the_teachers() -> None:
    axis_map = discover(
        LlamaConfig(
            vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=12, num_key_value_heads=6
        )
    ).axis_map
    target = replace(axis_map.teacher, heads=2, kv_heads=1)
    assert [sizes.kv_heads for sizes in architectures_between(axis_map, target, 3)] == [6, 3, 1]
