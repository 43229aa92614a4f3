"""Repairs against least squares on the raw inputs, and against formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from space.axes.architecture import Architecture, Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import InputMoment, Moments, NormEnergy
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.cutting.ridge import ridge_refit
from tests.contracts.draws import ranking_of
from tests.contracts.tiny import verified


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(weights: Tensor, inputs: Tensor, wanted: Tensor) -> float:
    return float((inputs @ weights.T - wanted).square().mean())


class TestLeastSquares:
    def test_it_is_that_of_the_raw_inputs(self) -> None:
        inputs, weights, kept = drawn(0, 200, 12), drawn(1, 5, 12), torch.arange(7)
        wanted = torch.linalg.lstsq(inputs[:, :7], inputs @ weights.T).solution.T
        found = ridge_refit(weights, inputs.T @ inputs / 200, kept, 0.0)
        torch.testing.assert_close(found[:, :7], wanted)
        assert torch.equal(found[:, 7:], weights[:, 7:])

    def test_the_ridge_is_relative_to_the_mean_square(self) -> None:
        """Rows of √(λN) in the kept inputs, with targets that the plain weights would give them."""
        inputs, weights, ridge = drawn(0, 200, 12), drawn(1, 5, 12), 0.3
        strength = ridge * float(inputs[:, :7].square().mean()) * 200
        more = strength**0.5 * torch.eye(7, dtype=torch.float64)
        both, targets = (
            torch.cat([inputs[:, :7], more]),
            torch.cat([inputs @ weights.T, more @ weights[:, :7].T]),
        )
        wanted = torch.linalg.lstsq(both, targets).solution.T
        found = ridge_refit(weights, inputs.T @ inputs / 200, torch.arange(7), ridge)
        torch.testing.assert_close(found[:, :7], wanted)

    @given(
        st.integers(0, 2**32 - 1),
        st.integers(2, 40),
        st.integers(1, 11),
        st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]),
    )
    @settings(max_examples=100)
    def test_the_error_on_the_calibration_set_never_grows(
        self, seed: int, tokens: int, size: int, ridge: float
    ) -> None:
        """However few the tokens, and however much of their energy lies in few directions."""
        inputs = drawn(seed, tokens, 12) * drawn(seed + 1, 12).exp()
        inputs[:, 0] = inputs[:, 11]
        weights, kept = drawn(seed + 2, 5, 12), torch.randperm(12)[:size]
        wanted = inputs @ weights.T
        found = ridge_refit(weights, inputs.T @ inputs / tokens, kept, ridge)
        before = error(weights[:, kept], inputs[:, kept], wanted)
        assert error(found[:, kept], inputs[:, kept], wanted) <= before * (1 + 1e-6) + 1e-12

    def test_dropped_neurons_that_follow_from_the_kept_are_made_up_for(self) -> None:
        kept = drawn(0, 300, 6)
        inputs, weights = torch.cat([kept, kept @ drawn(1, 6, 4)], 1), drawn(2, 5, 10)
        found = ridge_refit(weights, inputs.T @ inputs / 300, torch.arange(6), 1e-10)
        torch.testing.assert_close(kept @ found[:, :6].T, inputs @ weights.T, rtol=1e-6, atol=1e-6)

    def test_kept_neurons_that_never_speak_tell_nothing(self) -> None:
        inputs, weights = drawn(0, 50, 6), drawn(1, 3, 6)
        inputs[:, :2] = 0
        assert torch.equal(ridge_refit(weights, inputs.T @ inputs, torch.arange(2), 1e-4), weights)

    def test_weights_keep_their_type(self) -> None:
        inputs, weights = drawn(0, 50, 6), drawn(1, 3, 6).bfloat16()
        assert ridge_refit(weights, inputs.T @ inputs, torch.arange(4), 1e-4).dtype == torch.bfloat16


def repaired(case: str, moments: Moments, student: Architecture, **on: bool) -> dict[str, Tensor]:
    """Parameters of a student of all layers, cut by a random ranking."""
    found = verified(case)
    ranking = ranking_of(found.small, 3)
    canonical = sort_by_importance(saved_tensors(found.model, found.small), found.small, ranking)
    repair = Repair(moments=moments.sorted_by(found.small, ranking), ridge=1e-9, **on)  # type: ignore[arg-type]
    kept = list(range(student.layers))
    model = extract(canonical, found.small, ranking, student, kept, repair)
    return {name: values.detach() for name, values in model.named_parameters()}


def ranking_for(case: str) -> Ranking:
    return ranking_of(verified(case).small, 3)


@pytest.mark.parametrize(
    ("case", "name", "place", "axis"),
    [
        ("llama-tied-biases", "model.layers.1.mlp.down_proj.weight", 1, Axis.MLP),
        ("llama-tied-biases", "model.layers.1.self_attn.o_proj.weight", 1, Axis.HEADS),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight", 0, Axis.MLP),
    ],
)
def test_students_are_refitted_in_the_order_of_the_ranking(
    case: str, name: str, place: int, axis: Axis
) -> None:
    """By the teacher's own numbers: which inputs stay follows from the scores, and lstsq from raw inputs."""
    found, ranking = verified(case), ranking_for(case)
    teacher = found.small.teacher
    weights = saved_tensors(found.model, found.small)[name].detach().movedim(place, -1).double()
    inputs = drawn(5, 400, weights.shape[1]) @ drawn(6, weights.shape[1], weights.shape[1])
    moments = Moments({name: InputMoment(place, inputs.T @ inputs / 400)}, {}, "")
    if axis is Axis.MLP:
        student = replace(teacher, mlp=teacher.mlp // 2)
        kept = ranking.orders[Axis.MLP][1][: student.mlp]
    else:
        student = replace(teacher, heads=2, kv_heads=1)
        group = int(ranking.orders[Axis.KV_HEADS][1, 0])
        heads = ranking.orders[Axis.HEADS][1, group, :2] + 3 * group
        kept = (heads[:, None] * 8 + torch.arange(8)).flatten()
    wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ weights.T).solution.T
    new = repaired(case, moments, student, least_squares=True)[name].movedim(place, -1).double()
    torch.testing.assert_close(new, wanted[ranking.orders[Axis.HIDDEN]], rtol=1e-4, atol=1e-4)


def test_each_expert_is_refitted_by_what_it_read() -> None:
    found, ranking = verified("mixtral"), ranking_for("mixtral")
    name, teacher = "model.layers.1.mlp.experts.down_proj", found.small.teacher
    weights = saved_tensors(found.model, found.small)[name].detach().double()
    inputs = drawn(5, teacher.experts, 300, teacher.expert_mlp)
    moments = Moments({name: InputMoment(2, inputs.mT @ inputs / 300)}, {}, "")
    student = replace(teacher, experts=6, expert_mlp=12)
    new = repaired("mixtral", moments, student, least_squares=True)[name].double()
    for place, expert in enumerate(ranking.orders[Axis.EXPERTS][1].flatten()[:6].tolist()):
        kept = ranking.orders[Axis.EXPERT_MLP][1, expert, :12]
        wanted = torch.linalg.lstsq(inputs[expert][:, kept], inputs[expert] @ weights[expert].T).solution.T
        torch.testing.assert_close(new[place], wanted[ranking.orders[Axis.HIDDEN]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "offset"), [("llama-tied-biases", 0.0), ("gemma2", 1.0)])
def test_norms_are_scaled_by_what_the_kept_dimensions_hold(case: str, offset: float) -> None:
    found, ranking = verified(case), ranking_for(case)
    teacher, name = found.small.teacher, "model.layers.2.input_layernorm.weight"
    energy = drawn(0, teacher.hidden).square()
    energy *= teacher.hidden / energy.sum()
    moments = Moments({}, {name: NormEnergy(energy, offset)}, "")
    student = replace(teacher, hidden=teacher.hidden // 2)
    kept = ranking.orders[Axis.HIDDEN][: student.hidden]
    weight = saved_tensors(found.model, found.small)[name].detach()[kept].double()
    wanted = (weight + offset) * (energy[kept].sum() / student.hidden).sqrt() - offset
    new = repaired(case, moments, student, norm_scale=True)
    torch.testing.assert_close(new[name].double(), wanted, rtol=1e-6, atol=1e-6)
    plain = repaired(case, moments, student)
    assert {n for n in new if not torch.equal(new[n], plain[n])} == {name}


def test_nothing_changes_where_nothing_is_cut() -> None:
    found = verified("llama-tied-biases")
    down, norm = "model.layers.1.mlp.down_proj.weight", "model.layers.2.input_layernorm.weight"
    moments = Moments(
        {down: InputMoment(1, torch.eye(found.small.teacher.mlp, dtype=torch.float64))},
        {norm: NormEnergy(torch.rand(found.small.teacher.hidden, dtype=torch.float64), 0.0)},
        "",
    )
    teacher = found.small.teacher
    on, off = (
        repaired("llama-tied-biases", moments, teacher, least_squares=given, norm_scale=given)
        for given in (True, False)
    )
    assert all(torch.equal(on[name], off[name]) for name in on)


def test_repairs_want_moments() -> None:
    with pytest.raises(AssertionError, match="repairs need moments"):
        Repair(least_squares=True)
