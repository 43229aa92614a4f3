"""The residual of pruned heads against loops by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CONFIG_MAPPING

from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.repair import Repair, producing_tensors, residual_partners
from space.discovery.discovery import discover
from space.discovery.tiny import tiny_config
from space.verification.reload import captured_warnings
from tests.contracts.draws import ranking_of
from tests.contracts.tiny import logits_of, verified
from tests.versions import skip_phi3

#: Where shapes do not tell hidden from heads.
_OUT_OF_ATTENTION = frozenset({"transformer.h.*.self_attention.dense"})


@given(st.integers(1, 40), st.data())
def test_partners_are_those_of_the_formula(before: int, data: st.DataObject) -> None:
    after = data.draw(st.integers(1, before))
    wanted = list(range(before))
    if after < before <= 2 * after:
        for i in range(2 * after - before + 1, after + 1):
            wanted[i - 1] = 2 * after - i + 1 - 1
    found = residual_partners(before, after).tolist()
    assert found == wanted
    dropped = {other for place, other in enumerate(found) if other != place}
    assert dropped == (set(range(after, before)) if after < before <= 2 * after else set())


def case_of(name: str, seed: int = 3) -> tuple[AxisMap, dict[str, Tensor], Architecture]:
    """The map, the canonical weights and the architecture of the teacher."""
    found = verified(name)
    ranking = ranking_of(found.small, seed)
    canonical = sort_by_importance(saved_tensors(found.model, found.small), found.small, ranking)
    return found.small, canonical, found.small.teacher


def weights_of(name: str, student: Architecture, residual: bool, seed: int = 3) -> dict[str, Tensor]:
    axis_map, canonical, _ = case_of(name, seed)
    repair = Repair(heads=producing_tensors(axis_map)) if residual else Repair()
    kept = list(range(student.layers))
    model = extract(canonical, axis_map, ranking_of(axis_map, seed), student, kept, repair)
    return {name: values.detach() for name, values in model.named_parameters()}


def test_queries_of_a_group_take_in_what_is_left_of_their_neighbours() -> None:
    """Llama, three queries a group of which two stay; keys, values and outputs are as without."""
    axis_map, canonical, teacher = case_of("llama-tied-biases")
    assert (teacher.heads, teacher.kv_heads, axis_map.head_dim) == (6, 2, 8)
    student = replace(teacher, heads=4)
    plain, found = (weights_of("llama-tied-biases", student, on) for on in (False, True))
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    kinds = {f"model.layers.{layer}.self_attn.q_proj.{of}" for layer in range(4) for of in ("weight", "bias")}
    assert changed == kinds
    for name in changed:
        heads = canonical[name].unflatten(0, (2, 3, 8))
        for group in range(2):
            first, second, third = heads[group]
            kept = found[name].unflatten(0, (2, 2, 8))[group]
            torch.testing.assert_close(kept[0], first, rtol=0, atol=0)
            torch.testing.assert_close(kept[1], second + (second - third))


def test_heads_with_keys_and_values_of_their_own_take_them_along() -> None:
    """GPT-2, fused and transposed: six heads of which four stay; the third and fourth change."""
    _, canonical, teacher = case_of("gpt2")
    assert (teacher.hidden, teacher.heads) == (48, 6)
    student = replace(teacher, hidden=32, heads=4, kv_heads=4)
    plain, found = (weights_of("gpt2", student, on) for on in (False, True))
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {f"transformer.h.{n}.attn.c_attn.{of}" for n in range(4) for of in ("weight", "bias")}
    for name in changed:
        whole = canonical[name][:32] if name.endswith("weight") else canonical[name]
        for part in range(3):
            heads = [whole[..., part * 48 + h * 8 : part * 48 + (h + 1) * 8] for h in range(6)]
            wanted = [*heads[:2], heads[2] + (heads[2] - heads[5]), heads[3] + (heads[3] - heads[4])]
            for head, values in enumerate(wanted):
                start = part * 32 + head * 8
                torch.testing.assert_close(found[name][..., start : start + 8], values)


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("phi3", {"self_attn.qkv_proj.weight"}),
        ("falcon", {"self_attention.query_key_value.weight"}),
        ("gpt_oss", {f"self_attn.{of}_proj.{kind}" for of in "qkv" for kind in ("weight", "bias")}),
        ("deepseek_v3", {"self_attn.q_b_proj.weight", "self_attn.kv_b_proj.weight"}),
        ("bloom", {f"self_attention.query_key_value.{kind}" for kind in ("weight", "bias")}),
    ],
)
def test_what_produces_heads_is_found_in_every_layout(case: str, wanted: set[str]) -> None:
    with captured_warnings():
        found = producing_tensors(
            discover(tiny_config(CONFIG_MAPPING[case]()), attention=_OUT_OF_ATTENTION).axis_map
        )
    assert {name.split(".", 3)[3] for name in found} == wanted


@pytest.mark.parametrize("case", ["llama-tied-biases", "gpt2", "phi3"])
def test_nothing_changes_where_no_heads_are_cut(case: str) -> None:
    skip_phi3(case)
    _, _, teacher = case_of(case)
    for student in (teacher, replace(teacher, mlp=teacher.mlp // 2, layers=2)):
        plain, found = (weights_of(case, student, on) for on in (False, True))
        assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_with_more_than_twice_the_heads_nothing_is_done() -> None:
    _, _, teacher = case_of("llama-tied-biases")
    student = replace(teacher, heads=2)
    plain, found = (weights_of("llama-tied-biases", student, on) for on in (False, True))
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_whole_groups_that_go_leave_nothing() -> None:
    _, _, teacher = case_of("llama-tied-biases")
    student = replace(teacher, heads=3, kv_heads=1)
    plain, found = (weights_of("llama-tied-biases", student, on) for on in (False, True))
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_a_head_like_its_neighbour_stays_as_it_is() -> None:
    """A dropped head with the queries of the kept one leaves no residual, so that logits do not change."""
    found = verified("llama-tied-biases")
    axis_map, teacher = found.small, found.small.teacher
    canonical = sort_by_importance(saved_tensors(found.model, axis_map), axis_map, ranking_of(axis_map, 3))
    for name in producing_tensors(axis_map):
        if "q_proj" in name:
            heads = canonical[name].unflatten(0, (2, 3, 8))
            heads[:, 2] = heads[:, 1]
    student = replace(teacher, heads=4)
    plain, repaired = (
        logits_of(extract(canonical, axis_map, ranking_of(axis_map, 3), student, [0, 1, 2, 3], repair))
        for repair in (Repair(), Repair(heads=producing_tensors(axis_map)))
    )
    torch.testing.assert_close(plain, repaired)
