from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.importance import rank as rank_module
from evaluators.importance.activations import ActivationListener
from evaluators.importance.collected import scores_of
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank, ranking_fingerprint
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.cutting.ranking import Ranking
from space.input_error import InputError
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.reference import influence, reference_scores
from tests.evaluators.tiny_models import random_tokens, tiny_model

FAMILIES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 4}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
]
CALIBRATION = random_tokens(6, 10)
Scores = Mapping[Axis, Tensor]


def ranking_of(model: PreTrainedModel, calibration: Tensor = CALIBRATION) -> Ranking:
    return rank(model, map_of(model.config), calibration, "a fingerprint")


@pytest.mark.parametrize(("model_type", "changes"), FAMILIES)
def test_scores_are_those_of_the_formulas(model_type: str, changes: dict[str, Any]) -> None:
    model = tiny_model(model_type, **changes)
    ranking, wanted = ranking_of(model), reference_scores(model, CALIBRATION)
    assert ranking.scores.keys() == wanted.keys() == {Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.LAYERS}
    for axis, scores in wanted.items():
        assert_allclose(ranking.scores[axis], scores, rtol=2e-5)
    assert (ranking.kv_heads, ranking.expert_groups) == (2, 1)
    assert ranking.method == Method().words


def test_influence_is_that_of_the_states_between_layers() -> None:
    model = tiny_model()
    with torch.no_grad():
        output = model(input_ids=CALIBRATION.long(), output_hidden_states=True)
    states = [state.double().numpy() for state in output.hidden_states]
    # The library's last state is behind the final norm, so it is no layer's output.
    wanted = [influence(before, after) for before, after in pairwise(states[:-1])]
    assert_allclose(ranking_of(model).scores[Axis.LAYERS][:-1], wanted, rtol=2e-5)


def test_neurons_are_scored_behind_the_gate_and_heads_by_what_they_write() -> None:
    """A neuron whose gate is shut and a KV group whose values are nothing score 0 and come last."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.gate_proj.weight")[7] = 0
        values = model.get_parameter("model.layers.1.self_attn.v_proj.weight")
        values[:8], values[8:] = 0, 5 * values[8:]
    ranking = ranking_of(model)
    assert ranking.scores[Axis.MLP][1, 7] == 0
    assert ranking.orders[Axis.MLP][1, -1] == 7
    assert ranking.scores[Axis.HEADS][1].tolist()[:2] == [0, 0]
    assert ranking.order(Axis.KV_HEADS, 1).tolist() == [1, 0]
    assert min(ranking.scores[Axis.HEADS][1].tolist()[2:]) > 0


def test_absolute_values_are_taken_before_the_mean() -> None:
    """Activations that cancel out over the sequence are no less important."""
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_parameter(f"model.layers.0.{name}.weight").zero_()
        embeddings = model.get_parameter("model.embed_tokens.weight")
        embeddings[0], embeddings[1] = 1.0, -1.0
        for norm in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
            model.get_parameter(f"model.{norm}.weight").fill_(1.0)
    ranking = ranking_of(model, torch.tensor([[0, 1, 0, 1]]))
    assert_allclose(ranking.scores[Axis.HIDDEN], 3.0, rtol=1e-5)


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def map_of_teacher(teacher: PreTrainedModel) -> AxisMap:
    return map_of(teacher.config)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(
    teacher: PreTrainedModel, map_of_teacher: AxisMap, sizes: list[int]
) -> None:
    calibration, axis_map = random_tokens(sum(sizes), 5).long(), map_of_teacher
    whole, parts = (ActivationListener(teacher, axis_map) for _ in range(2))
    with torch.no_grad():
        with whole.on():
            whole.read(calibration)
        with parts.on():
            for batch in calibration.split(sizes):
                parts.read(batch)
    same(scores_of(whole), scores_of(parts))


def same(one: Scores, other: Scores) -> None:
    assert one.keys() == other.keys()
    for axis, scores in one.items():
        assert_allclose(scores, other[axis], rtol=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 4096])
def test_blocks_are_read_in_batches_that_fit(monkeypatch: pytest.MonkeyPatch, tokens_at_once: int) -> None:
    monkeypatch.setattr(rank_module, "_TOKENS_AT_ONCE", tokens_at_once)
    model, told = tiny_model(), list[float]()
    ranking = rank(model, map_of(model.config), CALIBRATION, "a fingerprint", told.append)
    assert sum(told) == len(CALIBRATION)
    assert max(told) == {1: 1, 20: 2, 4096: 6}[tokens_at_once]
    assert_allclose(ranking.scores[Axis.MLP], reference_scores(model, CALIBRATION)[Axis.MLP], rtol=2e-5)


@pytest.mark.parametrize("shape", [(1, 10), (1, 1)])
def test_one_block_is_enough(shape: tuple[int, int]) -> None:
    model, calibration = tiny_model(), random_tokens(*shape)
    wanted = reference_scores(model, calibration)
    assert_allclose(ranking_of(model, calibration).scores[Axis.HIDDEN], wanted[Axis.HIDDEN], rtol=2e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_activations_that_are_no_numbers_are_refused(value: float, name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).flatten()[3] = value
    with pytest.raises(InputError) as error:
        ranking_of(model)
    assert str(error.value) == (
        "The teacher's activations have to be finite on the calibration set; "
        "the scores of hidden are not. Try --dtype float32, or another teacher."
    )


def test_equal_scores_keep_the_order_of_the_teacher() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nothing = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.fill_(0.0 if nothing else 0.1)
    ranking = ranking_of(model)
    rows = [row for scores in ranking.scores.values() for row in torch.atleast_2d(scores)]
    for scores in rows:
        assert len(scores.unique()) == 1
    assert ranking.orders[Axis.HIDDEN].tolist() == list(range(16))
    assert ranking.orders[Axis.MLP].tolist() == [list(range(24))] * 3
    assert ranking.orders[Axis.KV_HEADS].tolist() == [[0, 1]] * 3
    assert ranking.orders[Axis.HEADS].tolist() == [[[0, 1], [0, 1]]] * 3
    assert ranking.orders[Axis.LAYERS].tolist() == [0, 1, 2]


def test_a_bfloat16_teacher_is_ranked_in_float32() -> None:
    model = tiny_model()
    wanted = reference_scores(model, CALIBRATION)
    ranking = ranking_of(model.bfloat16())
    assert {values.dtype for values in ranking.scores.values()} == {torch.float32}
    # Each weight is off by at most 2⁻⁸ of itself, and so are the states of three layers, give or take.
    assert_allclose(ranking.scores[Axis.MLP], wanted[Axis.MLP], rtol=0.05)
    assert np.corrcoef(ranking.scores[Axis.HIDDEN], wanted[Axis.HIDDEN])[0, 1] > 0.999


def test_the_teacher_is_left_as_it_was() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ranking_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks(model) == 0


def test_nothing_listens_after_an_error() -> None:
    model = tiny_model()
    with pytest.raises(IndexError):
        ranking_of(model, torch.full((1, 4), 999))
    assert hooks(model) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_ranking_belongs_to_teacher_calibration_set_and_method() -> None:
    names = {
        ranking_fingerprint("teacher", CALIBRATION),
        ranking_fingerprint("another", CALIBRATION),
        ranking_fingerprint("teacher", CALIBRATION[:5]),
        ranking_fingerprint("teacher", CALIBRATION + 1),
    }
    assert ranking_fingerprint("teacher", CALIBRATION.clone()) in names
    assert ranking_fingerprint("teacher", CALIBRATION, Method(depth=Depth.PERPLEXITY)) not in names
    assert len(names) == 4
