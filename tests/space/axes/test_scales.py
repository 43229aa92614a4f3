from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from space.axes.architecture import Axis
from space.axes.axis_map import Scales, compensate_scales, wildcard_name
from space.axes.config_fields import with_sizes
from space.cutting.extraction import saved_tensors
from space.verification.behaviour import measure_scales
from space.verification.contract import random_teacher
from tests.contracts.tiny import verified


def test_all_layers_have_one_name() -> None:
    assert (
        wildcard_name("model.layers.11.mlp.experts.3.w1.weight") == "model.layers.*.mlp.experts.*.w1.weight"
    )
    assert wildcard_name("lm_head.weight") == "lm_head.weight"
    assert wildcard_name("layers2.weight") == "layers2.weight"


@pytest.mark.parametrize(
    ("case", "embedding", "head", "offset"),
    [
        ("llama-tied-biases", 0.0, 0.0, 0.0),
        ("gemma2", 0.5, 0.0, 1.0),
        pytest.param("granite", 0.0, 0.0, 0.0, marks=pytest.mark.slow),
        pytest.param("minicpm3", 0.0, -1.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_what_a_class_derives_from_hidden(case: str, embedding: float, head: float, offset: float) -> None:
    """Gemma multiplies embeddings by the root of hidden; MiniCPM divides the head's input by hidden."""
    scales = verified(case).scales
    assert (scales.embedding, scales.head, scales.norm_offset) == (embedding, head, offset)


def test_measuring_leaves_the_model_as_it_was() -> None:
    found = verified("gemma2")
    before = {name: values.clone() for name, values in found.model.state_dict().items()}
    narrow = random_teacher(with_sizes(found.small.config, {"hidden_size": 24}))
    measure_scales(found.model, narrow, found.small, 24)
    assert all(torch.equal(values, before[name]) for name, values in found.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.model.modules())


class TestCarried:
    def test_a_tied_head_is_scaled_back_through_the_final_norm(self) -> None:
        found = verified("gemma2")
        student = replace(found.small.teacher, hidden=9)
        ratio = (found.small.teacher.hidden / 9) ** 0.5
        before = saved_tensors(found.model, found.small)
        after = {name: values.detach().clone() for name, values in before.items()}
        compensate_scales(after, found.small, student)
        table, norm = found.small.roles.embedding, found.small.roles.final_norm
        assert norm is not None
        assert torch.equal(after[table], before[table] * ratio)
        torch.testing.assert_close(1 + after[norm], (1 + before[norm]) / ratio)
        others = before.keys() - {table, norm}
        assert all(torch.equal(after[name], before[name]) for name in others)

    def test_an_untied_head_takes_it_alone(self) -> None:
        found = verified("gpt_oss")
        small = replace(found.small, scales=Scales(embedding=0.5, head=-1.0))
        student = replace(small.teacher, hidden=small.teacher.hidden // 4)
        before = saved_tensors(found.model, small)
        after = {name: values.detach().clone() for name, values in before.items()}
        compensate_scales(after, small, student)
        torch.testing.assert_close(after[small.roles.embedding], before[small.roles.embedding] * 2)
        torch.testing.assert_close(after[small.roles.head], before[small.roles.head] / 4)

    def test_the_teacher_s_width_changes_nothing(self) -> None:
        found = verified("gemma2")
        before = saved_tensors(found.model, found.small)
        after = {name: values.detach().clone() for name, values in before.items()}
        compensate_scales(after, found.small, found.small.teacher)
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.slow
    def test_queries_grow_as_their_heads_shrink(self) -> None:
        """Attention divides by the root of a smaller size; only a third of the fused rows are queries."""
        found = verified("bloom")
        teacher = found.small.teacher
        student = replace(teacher, hidden=teacher.hidden // 2, head_dim=teacher.head_dim // 2)
        name = "transformer.h.0.self_attention.query_key_value.weight"
        after = {name: torch.ones(3 * student.hidden, student.hidden)}
        after |= {role: torch.ones(1) for role in (found.small.roles.embedding,)}
        compensate_scales(after, found.small, student)
        per_head = after[name][:, 0].unflatten(0, (teacher.heads, 3, student.head_dim))
        torch.testing.assert_close(per_head[:, 0], torch.full_like(per_head[:, 0], 0.5**0.5))
        assert torch.equal(per_head[:, 1:], torch.ones_like(per_head[:, 1:]))


@pytest.mark.slow
def test_fields_are_rescaled_by_a_power() -> None:
    small = verified("minicpm3").small
    half = replace(small.teacher, layers=small.teacher.layers // 2)
    assert small.scales.rescaled == {"scale_depth": (Axis.LAYERS, 0.5)}
    assert small.scales.fields(small, half) == {"scale_depth": small.config.scale_depth * 0.5**0.5}
