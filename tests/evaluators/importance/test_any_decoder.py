"""Scores of classes that are built unlike Llama: transposed weights, experts, layers of several kinds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from transformers import PreTrainedModel

from evaluators.importance.activations import ActivationListener, norms
from evaluators.importance.collected import scores_of
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.axes.layout import Concatenated, Fixed, PerUnit
from space.cutting.ranking import Ranking
from space.input_error import InputError
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.reference import (
    Names,
    clamped,
    expert_scores,
    gated,
    reference_scores,
)
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(6, 10)
GPT2 = Names(
    layer="h.{}",
    norms=("h.{}.ln_1", "h.{}.ln_2"),
    last_norm="ln_f",
    neurons={Axis.MLP: "h.{}.mlp.c_proj"},
    heads="h.{}.attn.c_proj",
)
MIXTURE = Names(neurons={}, experts="layers.{}.mlp.experts", expert=gated)
SHARED = replace(MIXTURE, neurons={Axis.SHARED_MLP: "layers.{}.mlp.shared_expert.down_proj"})
CLASSES: dict[str, tuple[dict[str, Any], Names]] = {
    "gpt2": ({"n_inner": 24}, GPT2),
    "olmo": ({}, Names()),
    "mixtral": ({"num_local_experts": 5}, MIXTURE),
    "gpt_oss": ({"num_local_experts": 5, "num_experts_per_tok": 2}, replace(MIXTURE, expert=clamped)),
    "qwen2_moe": (
        {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
        SHARED,
    ),
}


def model_of(model_type: str, **changes: Any) -> PreTrainedModel:
    return tiny_model(model_type, **CLASSES[model_type][0] | changes)


def ranking_of(model: PreTrainedModel) -> Ranking:
    return rank(model, map_of(model.config), CALIBRATION, "a fingerprint")


@pytest.mark.parametrize("model_type", CLASSES)
def test_scores_are_those_of_the_formulas(model_type: str) -> None:
    model = model_of(model_type)
    ranking, wanted = ranking_of(model), reference_scores(model, CALIBRATION, CLASSES[model_type][1])
    assert ranking.scores.keys() == wanted.keys()
    for axis, scores in wanted.items():
        assert_allclose(ranking.scores[axis], scores, rtol=2e-5, err_msg=axis)


@pytest.fixture(scope="module")
def mixture() -> PreTrainedModel:
    return model_of("qwen2_moe")


@pytest.fixture(scope="module")
def map_of_mixture(mixture: PreTrainedModel) -> AxisMap:
    return map_of(mixture.config)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(
    mixture: PreTrainedModel, map_of_mixture: AxisMap, sizes: list[int]
) -> None:
    calibration, axis_map = random_tokens(sum(sizes), 5).long(), map_of_mixture
    whole, parts = (ActivationListener(mixture, axis_map) for _ in range(2))
    with torch.no_grad():
        with whole.on():
            whole.read(calibration)
        with parts.on():
            for batch in calibration.split(sizes):
                parts.read(batch)
    for axis, scores in scores_of(whole).items():
        assert_allclose(scores, scores_of(parts)[axis], rtol=1e-5, err_msg=axis)


def test_an_expert_that_no_token_chooses_scores_nothing() -> None:
    model = model_of("gpt_oss")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.router.bias")[2] = -1e4
    ranking = ranking_of(model)
    assert (ranking.scores[Axis.EXPERTS] == 0).nonzero().tolist() == [[1, 2]]
    assert (ranking.scores[Axis.EXPERT_MLP][1, 2] == 0).all()
    assert ranking.order(Axis.EXPERTS, 1)[-1] == 2


def test_an_experts_score_grows_with_use_and_with_size() -> None:
    model = model_of("mixtral", num_hidden_layers=1)
    names = CLASSES["mixtral"][1]
    before = ranking_of(model).scores[Axis.EXPERTS][0]
    with torch.no_grad():
        up = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
        up[2, 24:] *= 3  # the up half alone: the neurons grow by the same factor
    after = ranking_of(model).scores[Axis.EXPERTS][0]
    assert_allclose(after / before, [1, 1, 3, 1, 1], rtol=1e-4)
    assert_allclose(after, expert_scores(model, CALIBRATION, names)[Axis.EXPERTS][0], rtol=2e-5)


def test_layers_that_lack_an_axis_have_zeros_there() -> None:
    model = tiny_model(
        "qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        mlp_only_layers=[1],
    )
    scores = ranking_of(model).scores
    for axis, layers in ((Axis.MLP, [1]), (Axis.EXPERTS, [0, 2]), (Axis.EXPERT_MLP, [0, 2])):
        assert [layer for layer in range(3) if (scores[axis][layer] > 0).all()] == layers
        assert [layer for layer in range(3) if (scores[axis][layer] == 0).all()] == sorted(
            {0, 1, 2} - set(layers)
        )
    assert (scores[Axis.HEADS] > 0).all()


def test_norms_without_weights_are_found() -> None:
    model = model_of("olmo")
    assert norms(model, map_of(model.config)) == [
        *(f"model.layers.{i}.{name}_layernorm" for i in range(3) for name in ("input", "post_attention")),
        "model.norm",
    ]


def test_norms_of_heads_are_none_of_the_residual_stream() -> None:
    model = tiny_model("qwen3")
    assert not [name for name in norms(model, map_of(model.config)) if "self_attn" in name]


def test_the_teachers_way_with_experts_is_given_back(mixture: PreTrainedModel) -> None:
    before = mixture.config._experts_implementation
    assert before != "eager", "nothing would be changed"
    ranking_of(mixture)
    assert mixture.config._experts_implementation == before
    with pytest.raises(IndexError):
        rank(mixture, map_of(mixture.config), torch.full((1, 4), 999), "a fingerprint")
    assert mixture.config._experts_implementation == before


def test_groups_of_experts_are_those_of_the_layout(mixture: PreTrainedModel) -> None:
    axis_map = map_of(mixture.config)
    assert rank(mixture, axis_map, CALIBRATION, "a fingerprint").expert_groups == 1
    grouped = PerUnit(None, 2, PerUnit(Axis.EXPERTS, 2, Fixed(1)))
    tensors = tuple(
        replace(tensor, dimensions=(grouped, *tensor.dimensions[1:]))
        if tensor.axes[0] == {Axis.EXPERTS}
        else tensor
        for tensor in axis_map.tensors
    )
    ranking = rank(mixture, replace(axis_map, tensors=tensors), CALIBRATION, "a fingerprint")
    assert ranking.expert_groups == 2
    wanted = reference_scores(mixture, CALIBRATION, SHARED)
    assert_allclose(ranking.scores[Axis.EXPERT_MLP], wanted[Axis.EXPERT_MLP], rtol=2e-5)


def test_entries_of_heads_are_scored_over_heads_and_tokens() -> None:
    model = tiny_model("llama")
    axis_map = map_of(model.config)
    rows = PerUnit(Axis.KV_HEADS, 2, PerUnit(Axis.HEADS, 2, PerUnit(Axis.HEAD_DIM, 8, Fixed(1))))
    tensors = tuple(
        replace(tensor, dimensions=(tensor.dimensions[0], rows))
        if tensor.name.endswith("o_proj.weight")
        else tensor
        for tensor in axis_map.tensors
    )
    axis_map = replace(axis_map, tensors=tensors, teacher=replace(axis_map.teacher, head_dim=8))
    read: list[torch.Tensor] = []
    hook = model.get_submodule("model.layers.1.self_attn.o_proj").register_forward_pre_hook(
        lambda _, given: read.append(given[0])
    )
    scores = rank(model, axis_map, CALIBRATION, "a fingerprint").scores
    hook.remove()
    entries = torch.cat(read).double().unflatten(-1, (4, 8)).flatten(0, 2).numpy()
    assert_allclose(scores[Axis.HEAD_DIM][1], np.sqrt((entries**2).sum(0)), rtol=2e-5)
    assert_allclose(scores[Axis.HEADS], reference_scores(model, CALIBRATION)[Axis.HEADS], rtol=2e-5)


def test_an_axis_that_is_read_in_an_unknown_way_is_refused() -> None:
    model = tiny_model("llama")
    axis_map = map_of(model.config)
    halves = Concatenated((PerUnit(Axis.MLP, 12, Fixed(1)), PerUnit(Axis.MLP, 12, Fixed(1))))
    tensors = tuple(
        replace(tensor, dimensions=(tensor.dimensions[0], halves))
        if tensor.name == "model.layers.2.mlp.down_proj.weight"
        else tensor
        for tensor in axis_map.tensors
    )
    with pytest.raises(InputError) as error:
        rank(model, replace(axis_map, tensors=tensors), CALIBRATION, "a fingerprint")
    assert str(error.value) == (
        "Every axis of a teacher has to be heard in its forward pass; "
        "in 'llama', the MLPs of layer 2 could not be. Choose another teacher with --model."
    )


@pytest.mark.parametrize(("value", "axis"), [(math.nan, "hidden"), (1e30, "the experts")])
def test_activations_of_experts_that_are_no_numbers_are_refused(value: float, axis: str) -> None:
    """One that is no number reaches the norms; one that is too large for its square need not."""
    model = model_of("mixtral", num_hidden_layers=1)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")[:, 30] = value
        model.get_parameter("model.layers.0.mlp.experts.down_proj").zero_()
    with pytest.raises(InputError) as error:
        ranking_of(model)
    assert str(error.value) == (
        "The teacher's activations have to be finite on the calibration set; "
        f"the scores of {axis} are not. Try --dtype float32, or another teacher."
    )
