from __future__ import annotations

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
from evaluators.importance.activations import Listener
from evaluators.importance.rank import METHOD, rank, ranking_fingerprint
from space.axis_map import discover
from space.input_error import InputError
from space.ranking import Ranking
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


def ranking_of(model: PreTrainedModel, calibration: Tensor = CALIBRATION) -> Ranking:
    return rank(model, discover(model.config), calibration, "a fingerprint")


@pytest.mark.parametrize(("model_type", "changes"), FAMILIES)
def test_scores_are_those_of_the_formulas(model_type: str, changes: dict[str, Any]) -> None:
    model = tiny_model(model_type, **changes)
    ranking, wanted = ranking_of(model), reference_scores(model, CALIBRATION)
    assert_allclose(ranking.hidden, wanted.hidden, rtol=2e-5)
    assert_allclose(ranking.mlp, wanted.mlp, rtol=2e-5)
    assert_allclose(ranking.heads, wanted.heads, rtol=2e-5)
    assert_allclose(ranking.layers, wanted.layers, rtol=2e-5)
    assert ranking.kv_heads == 2
    assert ranking.method == METHOD


def test_influence_is_that_of_the_states_between_layers() -> None:
    model = tiny_model()
    with torch.no_grad():
        output = model(input_ids=CALIBRATION.long(), output_hidden_states=True)
    states = [state.double().numpy() for state in output.hidden_states]
    # The library's last state is behind the final norm, so it is no layer's output.
    wanted = [influence(before, after) for before, after in pairwise(states[:-1])]
    assert_allclose(ranking_of(model).layers[:-1], wanted, rtol=2e-5)


def test_neurons_are_scored_behind_the_gate_and_heads_by_what_they_write() -> None:
    """A neuron whose gate is shut and a KV group whose values are nothing score 0 and come last."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.gate_proj.weight")[7] = 0
        values = model.get_parameter("model.layers.1.self_attn.v_proj.weight")
        values[:8], values[8:] = 0, 5 * values[8:]
    ranking = ranking_of(model)
    assert ranking.mlp[1, 7] == 0
    assert ranking.mlp_order[1, -1] == 7
    assert ranking.heads[1].tolist()[:2] == [0, 0]
    assert ranking.group_order[1].tolist() == [1, 0]
    assert sorted(ranking.head_order[1, 0].tolist()) == [2, 3]


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
    assert_allclose(ranking.hidden, 3.0, rtol=1e-5)


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model("qwen3")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(teacher: PreTrainedModel, sizes: list[int]) -> None:
    calibration = random_tokens(sum(sizes), 5)
    whole, parts = (Listener(teacher, discover(teacher.config)) for _ in range(2))
    with torch.no_grad():
        with whole.on(teacher):
            teacher.base_model(input_ids=calibration.long())
        with parts.on(teacher):
            for batch in calibration.split(sizes):
                teacher.base_model(input_ids=batch.long())
    for one, other in (
        *zip(whole.neurons, parts.neurons, strict=True),
        *zip(whole.heads, parts.heads, strict=True),
        *zip(whole.norms.values(), parts.norms.values(), strict=True),
    ):
        assert_allclose(one.norm, other.norm, rtol=1e-5)
    for mine, theirs in zip(whole.influences, parts.influences, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 4096])
def test_blocks_are_read_in_batches_that_fit(monkeypatch: pytest.MonkeyPatch, tokens_at_once: int) -> None:
    monkeypatch.setattr(rank_module, "_TOKENS_AT_ONCE", tokens_at_once)
    model, told = tiny_model(), list[int]()
    ranking = rank(model, discover(model.config), CALIBRATION, "a fingerprint", told.append)
    assert sum(told) == len(CALIBRATION)
    assert max(told) == {1: 1, 20: 2, 4096: 6}[tokens_at_once]
    assert_allclose(ranking.mlp, reference_scores(model, CALIBRATION).mlp, rtol=2e-5)


@pytest.mark.parametrize("shape", [(1, 10), (1, 1)])
def test_one_block_is_enough(shape: tuple[int, int]) -> None:
    model, calibration = tiny_model(), random_tokens(*shape)
    wanted = reference_scores(model, calibration)
    assert_allclose(ranking_of(model, calibration).hidden, wanted.hidden, rtol=2e-5)


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
    for scores in (ranking.hidden, *ranking.mlp, *ranking.heads, ranking.layers):
        assert len(scores.unique()) == 1
    assert ranking.hidden_order.tolist() == list(range(16))
    assert ranking.mlp_order.tolist() == [list(range(24))] * 3
    assert ranking.head_order.flatten(1).tolist() == [list(range(4))] * 3
    assert ranking.kept_layers(2) == [0, 1]


def test_a_bfloat16_teacher_is_ranked_in_float32() -> None:
    model = tiny_model()
    wanted = reference_scores(model, CALIBRATION)
    ranking = ranking_of(model.bfloat16())
    scores = (ranking.hidden, ranking.mlp, ranking.heads, ranking.layers)
    assert {values.dtype for values in scores} == {torch.float32}
    # Each weight is off by at most 2⁻⁸ of itself, and so are the states of three layers, give or take.
    assert_allclose(ranking.mlp, wanted.mlp, rtol=0.05)
    assert np.corrcoef(ranking.hidden, wanted.hidden)[0, 1] > 0.999


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


def test_a_ranking_belongs_to_teacher_calibration_set_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        ranking_fingerprint("teacher", CALIBRATION),
        ranking_fingerprint("another", CALIBRATION),
        ranking_fingerprint("teacher", CALIBRATION[:5]),
        ranking_fingerprint("teacher", CALIBRATION + 1),
    }
    assert ranking_fingerprint("teacher", CALIBRATION.clone()) in names
    monkeypatch.setattr(rank_module, "METHOD", "another method")
    assert ranking_fingerprint("teacher", CALIBRATION) not in names
    assert len(names) == 4
