"""What bases are made of, against sums written out token by token."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from evaluators.importance.activations import ActivationListener
from evaluators.importance.method import Method
from evaluators.importance.moments import Covariance, reader_weighting
from evaluators.importance.rank import rank, rank_in_bases, ranking_fingerprint
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.input_error import InputError
from space.verification.contract import random_teacher
from space.verification.verification import verified_axis_map

CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)
CALIBRATION = torch.randint(0, 48, (6, 10), generator=torch.Generator().manual_seed(0))


@cache
def turnable() -> AxisMap:
    return verified_axis_map(CONFIG, BasisName.WEIGHTED)


def test_one_pass_serves_every_basis() -> None:
    model, seen = random_teacher(CONFIG), list[int]()
    model.model.register_forward_pre_hook(lambda *_: seen.append(1))
    found = rank_in_bases(model, turnable(), CALIBRATION, {basis: basis.value for basis in BasisName})
    assert len(seen) == 1, "60 tokens are one batch"
    for basis, ranking in found.items():
        alone = rank(model, turnable(), CALIBRATION, basis.value, method=Method(basis=basis))
        assert (ranking.method, ranking.fingerprint) == (alone.method, basis.value)
        for axis, scores in alone.scores.items():
            torch.testing.assert_close(ranking.scores[axis], scores, rtol=0, atol=0)
        if alone.basis is not None:
            assert ranking.basis is not None
            torch.testing.assert_close(ranking.basis.rotation, alone.basis.rotation, rtol=0, atol=0)


def test_moments_are_not_rounded_where_products_are() -> None:
    states = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
    plain, inside = Covariance(), Covariance()
    plain.add(states)
    with torch.autocast("cpu", torch.bfloat16):
        inside.add(states)
    assert torch.equal(plain.mean, inside.mean)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_any_split_gives_the_same_mean(sizes: list[int], seed: int) -> None:
    states = torch.randn(sum(sizes), 7, 5, generator=torch.Generator().manual_seed(seed))
    whole, parts = Covariance(), Covariance()
    whole.add(states)
    for part in states.split(sizes):
        parts.add(part)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-6)
    assert float(whole.mean.trace()) == pytest.approx(5, rel=1e-5)


def test_the_mean_is_the_one_of_the_definition() -> None:
    states = torch.tensor([[[3.0, 4.0]], [[0.0, -2.0]]])
    found = Covariance()
    found.add(states)
    one, two = torch.tensor([3.0, 4.0]).double() / (12.5**0.5), torch.tensor([0.0, -(2.0**0.5)]).double()
    torch.testing.assert_close(found.mean, (one.outer(one) + two.outer(two)) / 2, rtol=1e-6, atol=1e-7)


def test_readers_are_weighed_as_defined() -> None:
    model = random_teacher(CONFIG)
    noise = torch.randn(24, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covariance = noise @ noise.T
    wanted = torch.zeros(24, 24, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            behind = dict.fromkeys((attention.q_proj, attention.k_proj, attention.v_proj), first)
            behind |= {mlp.gate_proj: second, mlp.up_proj: second}
            for module, norm in behind.items():
                weight = (module.weight * norm).double()
                wanted += weight.T @ weight / (weight.T @ weight @ covariance).trace()
        head = (model.lm_head.weight * model.model.norm.weight).double()
        wanted += head.T @ head / (head.T @ head @ covariance).trace()
    axis_map = turnable()
    assert axis_map.stream is not None
    torch.testing.assert_close(
        reader_weighting(model, axis_map, axis_map.stream, covariance), wanted, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("basis", [BasisName.PRINCIPAL, BasisName.WEIGHTED])
def test_a_ranking_carries_its_basis(basis: BasisName) -> None:
    key = ranking_fingerprint("a teacher", CALIBRATION, Method(basis=basis))
    ranking = rank(random_teacher(CONFIG), turnable(), CALIBRATION, key, method=Method(basis=basis))
    assert ranking.basis is not None
    torch.testing.assert_close(
        ranking.basis.rotation.T @ ranking.basis.rotation, torch.eye(24), rtol=0, atol=1e-5
    )
    assert float(ranking.basis.energy.sum()) == pytest.approx(24, rel=1e-4)
    assert f"along the {basis} basis" in ranking.method
    assert key != ranking_fingerprint("a teacher", CALIBRATION)


def test_a_stream_that_is_not_finite_is_refused() -> None:
    model = random_teacher(CONFIG)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] = float("nan")
    with pytest.raises(InputError, match="activations have to be finite"):
        rank(model, turnable(), CALIBRATION, "", method=Method(basis=BasisName.PRINCIPAL))


@pytest.mark.parametrize("wanted", [True, False])
def test_a_covariance_that_nobody_wants_is_not_made(wanted: bool) -> None:
    model = random_teacher(CONFIG)
    listener = ActivationListener(model, turnable(), covariance=wanted)
    with torch.no_grad(), listener.on():
        listener.read(CALIBRATION.long())
    assert (listener.covariance.total is not None) == wanted
