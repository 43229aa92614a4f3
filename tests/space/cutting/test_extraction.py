"""What the contract (tests/contracts) does not say of the extraction: memory, types, order of units."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DiffLlamaConfig, LlamaConfig, Qwen2Config

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import (
    extract,
    layers_kept,
    model_from_weights,
    saved_tensors,
    sort_by_importance,
    student_config,
)
from space.cutting.ranking import Ranking
from space.discovery.discovery import discover
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.reload import captured_warnings
from tests.contracts.draws import ranking_of
from tests.contracts.tiny import TINY, logits_of, random_teacher, tokens, verified
from tests.space.models import SMALL

HALF = Architecture(hidden=12, mlp=20, heads=2, kv_heads=1, layers=2)


@pytest.fixture(scope="module")
def axis_map() -> AxisMap:
    return discover(SMALL).axis_map


@pytest.fixture(scope="module")
def ranking(axis_map: AxisMap) -> Ranking:
    return ranking_of(axis_map, 3)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(random_teacher(SMALL).named_parameters())


class TestSorting:
    def test_rows_of_a_head_move_together(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        name = "model.layers.1.self_attn.q_proj.weight"
        after = sort_by_importance(weights, axis_map, ranking)[name]
        groups, heads = ranking.orders[Axis.KV_HEADS][1].tolist(), ranking.orders[Axis.HEADS][1]
        for place, head in enumerate(2 * group + int(one) for group in groups for one in heads[group]):
            rows = weights[name][head * 8 : (head + 1) * 8][:, ranking.orders[Axis.HIDDEN]]
            assert torch.equal(after[place * 8 : (place + 1) * 8], rows)

    def test_the_teacher_is_left_as_it_was(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        before = {name: values.clone() for name, values in weights.items()}
        canonical = sort_by_importance(weights, axis_map, ranking)
        for values in canonical.values():
            assert not values.requires_grad
            values.zero_()
        assert all(torch.equal(weights[name], values) for name, values in before.items())


class TestStudentConfig:
    def test_it_has_the_sizes_of_the_student(self, axis_map: AxisMap) -> None:
        config = student_config(axis_map, HALF, [0, 2])
        assert isinstance(config, LlamaConfig)
        assert discover(config).axis_map.teacher == HALF
        assert config.head_dim == 8

    def test_lists_of_layers_follow_the_kept_layers(self) -> None:
        axis_map = discover(TINY["qwen2"]["mixed-layers"]).axis_map
        config = student_config(axis_map, dataclasses.replace(axis_map.teacher, layers=2), [0, 2])
        assert isinstance(config, Qwen2Config)
        assert config.layer_types == ["sliding_attention", "full_attention"]

    def test_lists_that_a_class_does_not_read_follow_too(self) -> None:
        """Llama has no such field, and yet wants as many entries as layers."""
        listed = LlamaConfig(**SMALL.to_dict() | {"layer_types": ["full_attention"] * 3})
        config = student_config(discover(listed).axis_map, HALF, [0, 1])
        assert config.layer_types == ["full_attention"] * 2

    def test_the_class_keeps_its_rules(self, axis_map: AxisMap) -> None:
        with pytest.raises(StrictDataclassError, match="multiple of the number of attention heads"):
            student_config(axis_map, dataclasses.replace(HALF, hidden=13), [0, 1])


class TestStudent:
    def test_its_memory_is_its_own(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        canonical = sort_by_importance(weights, axis_map, ranking)
        before = {name: values.clone() for name, values in canonical.items()}
        for architecture in (HALF, axis_map.teacher):
            student = extract(canonical, axis_map, ranking, architecture)
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.fill_(7)
            assert all(torch.equal(canonical[name], values) for name, values in before.items())

    def test_it_can_be_trained_and_is_in_evaluation_mode(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        student = extract(sort_by_importance(weights, axis_map, ranking), axis_map, ranking, HALF)
        assert not any(module.training for module in student.modules())
        assert all(
            parameter.requires_grad and parameter.is_contiguous() for parameter in student.parameters()
        )
        student.train()
        student(input_ids=tokens(), labels=tokens()).loss.backward()
        assert all(parameter.grad is not None for parameter in student.parameters())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_its_weights_are_of_the_teacher_s_type(
        self, dtype: torch.dtype, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        cast = {name: values.to(dtype) for name, values in weights.items()}
        student = extract(sort_by_importance(cast, axis_map, ranking), axis_map, ranking, HALF)
        assert {parameter.dtype for parameter in student.parameters()} == {dtype}

    def test_the_whole_teacher_is_a_student_too(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        canonical = sort_by_importance(weights, axis_map, ranking)
        student = extract(canonical, axis_map, ranking, axis_map.teacher)
        torch.testing.assert_close(logits_of(student), logits_of(random_teacher(SMALL)), rtol=1e-4, atol=1e-4)

    def test_it_is_the_same_each_time(
        self, axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
    ) -> None:
        canonical = sort_by_importance(weights, axis_map, ranking)
        first, second = (logits_of(extract(canonical, axis_map, ranking, HALF)) for _ in range(2))
        assert torch.equal(first, second)

    def test_a_tied_head_is_the_embedding(self) -> None:
        config = TINY["llama"]["tied-biases"]
        axis_map = discover(config).axis_map
        ranking = ranking_of(axis_map, 0)
        canonical = sort_by_importance(dict(random_teacher(config).named_parameters()), axis_map, ranking)
        student = extract(canonical, axis_map, ranking, Architecture(20, 10, 4, 4, 1))
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


class TestAnExpertsNeurons:
    """Each expert has an order of its own, which goes with it wherever it goes."""

    def test_each_expert_is_sorted_by_its_own_scores(self) -> None:
        found = verified("mixtral")
        ranking = ranking_of(found.small, 1, 10**6)
        before = saved_tensors(found.model, found.small)
        after = sort_by_importance(before, found.small, ranking)
        name, stream = "model.layers.1.mlp.experts.down_proj", ranking.orders[Axis.HIDDEN]
        for place, expert in enumerate(ranking.orders[Axis.EXPERTS][1].flatten().tolist()):
            neurons = ranking.orders[Axis.EXPERT_MLP][1, expert]
            assert torch.equal(after[name][place], before[name][expert][stream][:, neurons])

    def test_and_the_student_has_the_best_of_the_best(self) -> None:
        found = verified("mixtral")
        small, ranking = found.small, ranking_of(found.small, 1, 10**6)
        few = dataclasses.replace(small.teacher, experts=3, expert_mlp=5, layers=2)
        before = saved_tensors(found.model, small)
        student = extract(sort_by_importance(before, small, ranking), small, ranking, few)
        layer = layers_kept(small, ranking, few)[1]
        for place, expert in enumerate(ranking.orders[Axis.EXPERTS][layer].flatten().tolist()[:3]):
            neurons = ranking.orders[Axis.EXPERT_MLP][layer, expert, :5]
            whole = before[f"model.layers.{layer}.mlp.experts.down_proj"][expert]
            found_one = student.get_parameter("model.layers.1.mlp.experts.down_proj")[place]
            assert torch.equal(found_one, whole[ranking.orders[Axis.HIDDEN]][:, neurons])


def test_a_layer_that_would_be_made_differently_is_refused() -> None:
    """The scale of a layer's attention follows its place in Diff-Llama."""
    with captured_warnings():
        config = tiny_config(DiffLlamaConfig())
        teacher, axis_map = random_teacher(config), discover(config).axis_map
        ranking = ranking_of(axis_map, 0)
        canonical = sort_by_importance(saved_tensors(teacher, axis_map), axis_map, ranking)
        last = dataclasses.replace(axis_map.teacher, layers=1)
        with pytest.raises(InputError, match="layer 3 would be layer 0, where its class makes lambda_init"):
            extract(canonical, axis_map, ranking, last, [3])


def test_no_weight_may_be_missing(axis_map: AxisMap, weights: dict[str, torch.Tensor]) -> None:
    del weights["model.norm.weight"]
    with pytest.raises(InputError, match=r"the class then wants model\.norm\.weight, which"):
        model_from_weights(axis_map.config, weights)


def test_making_a_student_draws_no_random_numbers(
    axis_map: AxisMap, ranking: Ranking, weights: dict[str, torch.Tensor]
) -> None:
    state = torch.get_rng_state()
    extract(sort_by_importance(weights, axis_map, ranking), axis_map, ranking, HALF)
    assert torch.equal(torch.get_rng_state(), state)
