"""Importance by weights, by gradients and by chance: against references by hand, and at their edges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from transformers import PreTrainedModel

from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.rank import rank, ranking_fingerprint
from evaluators.importance.taylor import Taylor, taylor_scores
from evaluators.importance.unit_scores import UnitSums, magnitudes, random_scores
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.evaluators.importance import reference_weights as reference
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.test_aggregation import FALCON_H1
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(5, 8)
BASELINES = (Width.TAYLOR, Width.MAGNITUDE, Width.RANDOM)
#: Hidden is as long as nothing else, except in GPT-2, where that cannot be.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"hidden_size": 20, "tie_word_embeddings": True, "attention_bias": True},
    "gpt2": {"n_inner": 24, "tie_word_embeddings": True},
    "mixtral": {"hidden_size": 20, "head_dim": 8, "num_local_experts": 5},
    "gpt_oss": {"hidden_size": 20, "head_dim": 8, "num_local_experts": 5, "num_experts_per_tok": 2},
    "falcon_h1": FALCON_H1 | {"hidden_size": 20},
}
#: Trying a class takes seconds; what is special of these the others have too.
LATER = ("gpt2", "gpt_oss", "falcon_h1")
EACH = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow) if name in LATER else name for name in FAMILIES],
)


@cache
def teacher(family: str) -> tuple[PreTrainedModel, AxisMap]:
    """With a map that was verified for: of fused tensors, shapes alone do not give the order inside."""
    model = tiny_model(family, **FAMILIES[family])
    return model, verified_axis_map(model.config)


@EACH
def test_magnitudes_are_those_of_the_formula(family: str) -> None:
    model, axis_map = teacher(family)
    scores, wanted = magnitudes(model, axis_map), reference.magnitudes(model)
    assert scores.keys() == wanted.keys()
    for axis, values in wanted.items():
        assert_allclose(scores[axis], values, rtol=1e-5, err_msg=axis)


@EACH
def test_taylor_scores_are_those_of_the_formula(family: str) -> None:
    """Also with logits in slices of few tokens, each of which reaches the head, which may be tied."""
    model, axis_map = teacher(family)
    wanted = reference.taylor(model, CALIBRATION)
    for batches in (CALIBRATION.split(2), CALIBRATION.split(1)):
        scores = taylor_scores(model, axis_map, batches)
        assert scores.keys() == wanted.keys()
        for axis, values in wanted.items():
            assert_allclose(scores[axis], values, rtol=1e-3, atol=1e-6 * float(values.max()), err_msg=axis)


def test_logits_of_few_tokens_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, axis_map = teacher("qwen3")
    whole = taylor_scores(model, axis_map, [CALIBRATION])
    monkeypatch.setattr("evaluators.importance.taylor.token_slice", lambda vocabulary: 3)
    for axis, scores in taylor_scores(model, axis_map, [CALIBRATION]).items():
        assert_allclose(scores, whole[axis], rtol=1e-3, atol=1e-6 * float(scores.max()))


def test_a_taylor_score_foretells_the_loss() -> None:
    """Scaling a neuron's outgoing weights by 1 ± ε changes the loss by ±ε Σ g·w of these weights."""
    model = tiny_model(num_hidden_layers=1)
    axis_map = map_of(model.config)
    down = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    inner = [t for t in axis_map.tensors if t.name.endswith("down_proj.weight")]
    block = CALIBRATION[:1]
    taylor = Taylor(model, replace(axis_map, tensors=tuple(inner)))
    with taylor.on():
        taylor.read(block[0].long())

    def loss() -> float:
        return float(model(input_ids=block.long(), labels=block.long()).loss)

    with torch.no_grad():
        for neuron in taylor.scores[Axis.MLP][0].topk(3).indices.tolist():
            kept, losses = down[:, neuron].clone(), []
            for scale in (0.97, 1.03):
                down[:, neuron] = kept * scale
                losses.append(loss())
            down[:, neuron] = kept
            change = (losses[1] - losses[0]) / 0.06
            assert change**2 == pytest.approx(float(taylor.scores[Axis.MLP][0, neuron]), rel=0.02)


@pytest.mark.parametrize("width", BASELINES)
@EACH
def test_every_axis_is_scored_as_by_activations(family: str, width: Width) -> None:
    model, axis_map = teacher(family)
    by_activations = rank(model, axis_map, CALIBRATION, "")
    ranking = rank(model, axis_map, CALIBRATION, "", method=Method(width=width))
    assert {axis: scores.shape for axis, scores in ranking.scores.items()} == {
        axis: scores.shape for axis, scores in by_activations.scores.items()
    }
    assert torch.equal(ranking.scores[Axis.LAYERS], by_activations.scores[Axis.LAYERS])
    for axis in ranking.scores.keys() - {Axis.LAYERS}:
        assert not torch.equal(ranking.scores[axis], by_activations.scores[axis])
    assert (ranking.kv_heads, ranking.expert_groups) == (
        by_activations.kv_heads,
        by_activations.expert_groups,
    )
    assert ranking.method.startswith(width.value)
    assert "activations" not in ranking.method


@pytest.mark.parametrize("width", BASELINES)
def test_layers_that_lack_an_axis_have_zeros_there(width: Width) -> None:
    model = tiny_model(
        "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, mlp_only_layers=[1]
    )
    scores = rank(model, map_of(model.config), CALIBRATION, "", method=Method(width=width)).scores
    for axis, layers in ((Axis.MLP, [1]), (Axis.EXPERTS, [0, 2]), (Axis.EXPERT_MLP, [0, 2])):
        assert [layer for layer in range(3) if scores[axis][layer].any()] == layers


def test_chance_depends_on_its_seed_alone() -> None:
    _, axis_map = teacher("mixtral")
    one, again, other = (random_scores(axis_map, seed) for seed in (1, 1, 2))
    assert all(torch.equal(scores, again[axis]) for axis, scores in one.items())
    assert not any(torch.equal(scores, other[axis]) for axis, scores in one.items())


def test_a_seed_is_part_of_what_chance_depends_on() -> None:
    """Of scores of units and of layers; what no chance enters into has no seed."""

    def keys(**way: Any) -> int:
        return len({ranking_fingerprint("", CALIBRATION, Method(seed=seed, **way)) for seed in (1, 2)})

    assert keys(width=Width.RANDOM) == keys(depth=Depth.RANDOM) == 2
    assert keys() == keys(width=Width.TAYLOR) == keys(width=Width.MAGNITUDE) == 1


@pytest.mark.parametrize(("width", "passes"), [(Width.MAGNITUDE, 0), (Width.RANDOM, 0), (Width.TAYLOR, 5)])
def test_weights_and_chance_need_no_pass(width: Width, passes: int) -> None:
    model, axis_map = teacher("qwen3")
    told: list[int] = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: told.append(1))
    rank(model, axis_map, CALIBRATION, "", method=Method(width=width, depth=Depth.RANDOM))
    hook.remove()
    assert len(told) == passes


def test_one_gradient_at_a_time_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral", num_local_experts=5)
    axis_map = map_of(model.config)
    frozen = model.get_parameter("model.norm.weight").requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    counted: list[int] = []
    add = UnitSums.add

    def counting(self: UnitSums, tensor: MappedTensor, values: torch.Tensor) -> None:
        counted.append(sum(parameter.grad is not None for parameter in model.parameters()))
        add(self, tensor, values)

    monkeypatch.setattr(UnitSums, "add", counting)
    rank(model, axis_map, CALIBRATION, "", method=Method(width=Width.TAYLOR))
    assert max(counted) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_expert_that_no_token_chooses_changes_no_loss() -> None:
    model = tiny_model("gpt_oss", **FAMILIES["gpt_oss"])
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.router.bias")[2] = -1e4
    scores = taylor_scores(model, map_of(model.config), [CALIBRATION])
    assert (scores[Axis.EXPERT_MLP][1, 2] == 0).all()
    assert scores[Axis.EXPERTS][1, 2] == scores[Axis.EXPERTS][1].min() < 1e-12
    assert (scores[Axis.EXPERT_MLP][1, 0] > 0).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("width", "rule"),
    [
        (Width.TAYLOR, "gradients have to be finite on the calibration set; the scores of hidden are not"),
        (Width.MAGNITUDE, "weights have to be finite; the scores of hidden are not"),
        (
            Width.RANDOM,
            "activations have to be finite on the calibration set; the scores of the layers are not",
        ),
    ],
)
def test_a_teacher_that_is_not_finite_is_refused(value: float, width: Width, rule: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 3] = value
    with pytest.raises(InputError) as error:
        rank(model, map_of(model.config), CALIBRATION, "", method=Method(width=width))
    assert str(error.value) == f"The teacher's {rule}. Try --dtype float32, or another teacher."


def test_a_score_too_large_for_its_file_is_refused() -> None:
    """Finite in float64, in which sums are kept, and not in float32, in which scores are."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(1e15)
    method = Method(batch="var", sequence="var")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"activations have to be finite .*the scores of hidden are not"):
        rank(model, map_of(model.config), CALIBRATION, "", method=method)


def test_a_block_of_one_token_has_no_loss() -> None:
    model, axis_map = teacher("qwen3")
    with pytest.raises(InputError) as error:
        rank(model, axis_map, CALIBRATION[:, :1], "", method=Method(width=Width.TAYLOR))
    assert str(error.value) == (
        "Units scored by the gradient of the loss need calibration blocks of two tokens or more; "
        "the blocks have 1. Take longer blocks, or score units by activations."
    )


@pytest.mark.parametrize("width", [Width.TAYLOR, Width.MAGNITUDE])
def test_units_that_are_all_alike_keep_their_order(width: Width) -> None:
    """Neurons, of which each does the same, are equal; so are KV groups, and heads in them, of one block."""
    model = tiny_model()
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            model.get_parameter(f"model.layers.1.mlp.{name}.weight").fill_(0.125)
    ranking = rank(model, map_of(model.config), CALIBRATION[:1], "", method=Method(width=width))
    assert len(ranking.scores[Axis.MLP][1].unique()) == 1
    assert ranking.orders[Axis.MLP][1].tolist() == list(range(24))
    assert ranking.orders[Axis.MLP][0].tolist() != list(range(24))
