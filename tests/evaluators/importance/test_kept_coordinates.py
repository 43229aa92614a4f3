"""How many coordinates a basis keeps: as few as a measured loss allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.importance.kept_coordinates import (
    TOLERANCE,
    BasisLoss,
    finals_of,
    fitting_basis,
    kept_numbers,
)
from evaluators.importance.method import Method
from evaluators.importance.rank import rank
from space.cutting.basis import Basis, BasisName, UnfoldedNorm, basis_of, best_diagonal, outlier_shares
from space.verification.verification import verified_axis_map
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(8, 16)


def plain(kept: int) -> Basis:
    return Basis(torch.eye(2), torch.ones(2), kept)


@given(st.integers(1, 5000), st.integers(0, 3000))
def test_the_fewest_that_suffice_are_kept(size: int, needed: int) -> None:
    """Of a loss that falls below the tolerance at a known number, with few measurements."""
    asked: list[int] = []

    def loss(basis: Basis | None) -> float:
        if basis is None:
            return 2.0
        asked.append(basis.kept)
        return 2.0 + (TOLERANCE / 2 if basis.kept >= needed else 2 * TOLERANCE)

    found, numbers = fitting_basis(plain, loss, size), kept_numbers(size)
    assert found.kept == next((number for number in numbers if number >= needed), numbers[-1])
    assert found.loss_added == pytest.approx((0.5 if found.kept >= needed else 2) * TOLERANCE)
    assert len(asked) == len(set(asked)) <= 2 + len(numbers).bit_length()


@given(st.integers(1, 100_000))
def test_numbers_double_up_to_half(size: int) -> None:
    numbers = kept_numbers(size)
    assert numbers[0] == 0
    assert numbers[-1] <= size / 2
    assert numbers[1:] == [4 * 2**n for n in range(len(numbers) - 1)]
    assert size < 8 or 4 * numbers[-1] > size


@given(st.integers(2, 10), st.integers(0, 99))
def test_the_diagonal_is_the_best_in_least_squares(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    gain = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    norm = UnfoldedNorm(gain, states.T @ states / len(states))
    turned, wanted = states @ rotation, (states * gain) @ rotation
    for column, value in enumerate(best_diagonal(norm, rotation).tolist()):
        best = torch.linalg.lstsq(turned[:, column, None], wanted[:, column, None]).solution
        assert value == pytest.approx(best.item(), abs=1e-9)
    torch.testing.assert_close(best_diagonal(norm, torch.eye(size).double()), gain)
    level = UnfoldedNorm(torch.full_like(gain, 0.7), norm.second)
    torch.testing.assert_close(best_diagonal(level, rotation), level.gain)


def test_outliers_are_what_deviates_where_the_stream_is_large() -> None:
    gain = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0]).double()
    second = torch.tensor([9.0, 1.0, 1.0, 4.0, 1.0]).double().diag()
    shares = outlier_shares({"norm": UnfoldedNorm(gain, second)})
    assert shares.tolist() == pytest.approx([0, 4 / 56, 0, 16 / 56, 0])


@given(st.integers(4, 12), st.integers(0, 99), st.booleans(), st.data())
def test_kept_coordinates_come_first_as_they_are(
    size: int, seed: int, centred: bool, data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=size - 2))
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
    states = states - states.mean(-1, keepdim=True) if centred else states
    states *= (states.square().mean(-1, keepdim=True)).rsqrt()
    covariance = states.T @ states / len(states)
    basis = basis_of(BasisName.WEIGHTED, covariance, torch.eye(size).double(), centred, kept)
    rotation = basis.rotation
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(size), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation[:, : len(kept)], torch.eye(size)[:, kept])
    assert not rotation[kept, len(kept) :].any()
    assert float(basis.energy.sum()) == pytest.approx(size, rel=1e-4)
    assert basis.kept == len(kept)
    assert basis.gain(size) == pytest.approx(1, rel=1e-4)
    if centred:  # the mean of the coordinates is that of the new ones
        torch.testing.assert_close(rotation.sum(0), torch.ones(size), atol=1e-5, rtol=0)


def test_level_norms_cost_nothing_and_keep_nothing() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    torch.nn.init.constant_(model.model.norm.weight, 0.8)
    axis_map = verified_axis_map(model.config, BasisName.WEIGHTED)
    basis = rank(model, axis_map, CALIBRATION, "", method=Method(basis=BasisName.WEIGHTED)).basis
    assert basis is not None
    assert basis.kept == 0
    assert basis.loss_added == pytest.approx(0, abs=1e-5)


def test_a_loss_is_that_of_the_teacher_with_other_norms() -> None:
    """Along coordinates in another order, nothing changes; with other gains, it is the teacher with these."""
    model = tiny_model("llama", tie_word_embeddings=True)
    axis_map = verified_axis_map(model.config, BasisName.WEIGHTED)
    measure = BasisLoss(model, axis_map, lambda: finals_of(model, [CALIBRATION]))
    own, size = model.model.norm.weight.detach().clone(), axis_map.teacher.hidden
    covariance = torch.eye(size).double()
    norms = {"model.norm.weight": UnfoldedNorm(own.double(), covariance)}
    turned = basis_of(BasisName.PRINCIPAL, covariance, covariance, kept=range(size - 1), norms=norms)
    assert measure(turned) == pytest.approx(measure(None), abs=1e-6)
    norms = {"model.norm.weight": UnfoldedNorm(2 * own.double(), covariance)}
    doubled = basis_of(BasisName.PRINCIPAL, covariance, covariance, kept=range(size - 1), norms=norms)
    found = measure(doubled)
    model.model.norm.weight.data.mul_(2)
    assert found == pytest.approx(measure(None), abs=1e-6)


@pytest.mark.parametrize("name", [BasisName.PRINCIPAL, BasisName.WEIGHTED])
def test_a_trained_teacher_keeps_a_few_coordinates(name: BasisName, real: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real / "stories260K").eval()
    tokenizer = AutoTokenizer.from_pretrained(real / "stories260K")
    text = (real / "tinystories.txt").read_text(encoding="utf-8")[:20_000]
    tokens = torch.tensor(tokenizer(text)["input_ids"][: 16 * 256]).view(16, 256)
    axis_map = verified_axis_map(model.config, name)
    basis = rank(model, axis_map, tokens, "", method=Method(basis=name)).basis
    assert basis is not None
    assert basis.norms.keys() == {"model.norm.weight"}
    assert basis.loss_added <= TOLERANCE
    assert 0 < basis.kept < axis_map.teacher.hidden // 2
