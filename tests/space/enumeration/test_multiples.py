"""Sizes for deployment: every size is a multiple of what is asked, or the teacher's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig, Qwen3Config

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, Measure
from space.discovery.discovery import discover
from space.enumeration.choices import DEPLOYMENT, sizes_of, step_of
from space.enumeration.enumeration import enumerate_space
from space.enumeration.limits import read_limits
from space.enumeration.search_space import SearchSpace
from tests.space.models import LLAMA_8B

#: Neither its 28 heads nor its 896 coordinates of hidden are a multiple.
UNEVEN = Qwen3Config(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=50_000,
)


@pytest.fixture(scope="module")
def llama() -> AxisMap:
    return discover(LLAMA_8B).axis_map


def deployed(axis_map: AxisMap) -> AxisMap:
    return replace(axis_map, multiples=DEPLOYMENT)


def near(axis_map: AxisMap, amount: float) -> SearchSpace:
    return enumerate_space(axis_map, Budget(int(amount), 0.02, Measure("total")))


def served(space: SearchSpace, teacher: AxisMap) -> list[bool]:
    """Of each architecture whether eight devices can share it and K-quants pack it."""
    return [
        a.hidden % 256 == a.mlp % 256 == a.heads % 8 == 0
        and (a.kv_heads % 8 == 0 or 8 % a.kv_heads == 0)
        and a.heads * teacher.head_dim % 256 == 0
        for a in space.architectures
    ]


def test_all_of_an_8b_near_4_5b_can_be_served(llama: AxisMap) -> None:
    space = near(deployed(llama), 4.5e9)
    assert len(space) == 245, "as docs/deploy.md says"
    assert all(served(space, llama))


def test_in_small_steps_few_can(llama: AxisMap) -> None:
    fine = served(near(llama, 4.5e9), llama)
    assert (sum(fine), len(fine)) == (139, 459), "as docs/deploy.md says"


def test_the_teacher_s_own_sizes_stay_possible() -> None:
    axis_map = deployed(discover(UNEVEN).axis_map)
    assert sizes_of(Axis.HIDDEN, axis_map, 1, None) == [256, 512, 768, 896]
    assert sizes_of(Axis.HEADS, axis_map, 1, None) == [8, 16, 24, 28]
    assert sizes_of(Axis.KV_HEADS, axis_map, 1, None) == [1, 2, 4]


@pytest.mark.parametrize(
    ("kv_heads", "allowed"), [(12, [1, 2, 4, 12]), (16, [1, 2, 4, 8, 16]), (24, [1, 2, 4, 8, 24])]
)
def test_kv_heads_can_be_shared_or_repeated(kv_heads: int, allowed: list[int]) -> None:
    config = LlamaConfig(
        hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=48, head_dim=8
    )
    config.num_key_value_heads = kv_heads
    assert sizes_of(Axis.KV_HEADS, deployed(discover(config).axis_map), 1, None) == allowed


def test_what_the_user_lists_stays(llama: AxisMap) -> None:
    limits = read_limits((), ("hidden=3136,3200", "mlp=9000..10000"))
    space = enumerate_space(deployed(llama), Budget(int(5e9), 0.05, Measure("total")), limits)
    assert set(space.values(Axis.HIDDEN)) == {3136, 3200}
    assert all(size % 256 == 0 for size in space.values(Axis.MLP))


def test_steps_are_multiples_of_both(llama: AxisMap) -> None:
    for axis in llama.free:
        step = step_of(axis, deployed(llama))
        assert step % step_of(axis, llama) == 0
        assert step % DEPLOYMENT.get(axis, 1) == 0
