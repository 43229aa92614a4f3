"""The ridge that is chosen: by raw inputs, and on tokens that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from space.cutting.ridge import RIDGE, ridge_refit


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def covariance(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """(n, n): independent inputs, loud and quiet ones, a few directions, or energies that fall off."""
    mixed = drawn(generator, size, size)
    match kind:
        case "alike":
            return torch.eye(size, dtype=torch.float64)
        case "loud":
            return torch.diag(drawn(generator, size).mul(2).exp())
        case "massive":
            loud = torch.ones(size, dtype=torch.float64)
            loud[0] = 1e4
            return torch.diag(loud)
        case "few directions":
            few = mixed[:, : max(1, size // 4)]
            return few @ few.T + 1e-3 * torch.eye(size, dtype=torch.float64)
        case _:
            return mixed @ mixed.T / size


def expected(weights: Tensor, new: Tensor, kept: int, second: Tensor) -> float:
    """The mean square of what is lost of the output, over all that the covariance can draw."""
    lost = weights.clone()
    lost[:, :kept] -= new[:, :kept]
    return float(((lost @ second) * lost).sum())


def moments_of(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The moment, and the first half's part of it."""
    first = inputs[: len(inputs) // 2]
    return inputs.T @ inputs / len(inputs), first.T @ first / len(inputs)


def ratios(kind: str, outputs: int, tokens: int, draws: int, seed: int) -> Iterator[float]:
    """The expected error on fresh inputs over that without a repair, for several calibration sets."""
    generator, size, kept = torch.Generator().manual_seed(seed), 12, 7
    true = covariance(kind, size, generator)
    root = torch.linalg.cholesky(true)
    weights = drawn(generator, outputs, size)
    before = expected(weights, weights, kept, true)
    for _ in range(draws):
        second, half = moments_of(drawn(generator, tokens, size) @ root.T)
        new = ridge_refit(weights, second, torch.arange(kept), half=half, tokens=tokens)
        yield expected(weights, new, kept, true) / before


@given(
    kind=st.sampled_from(["alike", "loud", "massive", "few directions", "mixed"]),
    outputs=st.sampled_from([1, 5, 20]),
    tokens=st.sampled_from([2, 3, 5, 8, 16, 24, 40, 100, 600]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_no_number_of_tokens_hurts(kind: str, outputs: int, tokens: int, seed: int) -> None:
    """On average over calibration sets; a tenth more, and three standard errors, are left to chance."""
    found = torch.tensor(list(ratios(kind, outputs, tokens, 24, seed)))
    assert float(found.mean()) <= 1.1 + 3 * float(found.std()) / len(found) ** 0.5


@pytest.mark.parametrize("tokens", [40, 100, 600])
def test_what_can_be_foretold_is(tokens: int) -> None:
    """Where a quarter of the directions hold all energy, nearly nothing is lost."""
    assert max(ratios("few directions", 20, tokens, 8, 0)) < 0.02


def test_the_ridge_is_best_for_the_half_that_loses_more() -> None:
    """By ridge regressions on raw inputs, with rows of √(λN) below them."""
    generator, tokens, kept = torch.Generator().manual_seed(1), 60, 8
    inputs = drawn(generator, tokens, 12) @ drawn(generator, 12, 12)
    weights = drawn(generator, 5, 12)
    wanted = inputs[:, kept:] @ weights[:, kept:].T

    def fitted(rows: slice, ridge: float) -> Tensor:
        some = inputs[rows, :kept]
        strength = (ridge * float(some.square().mean()) * len(some)) ** 0.5
        more = torch.cat([some, strength * torch.eye(kept, dtype=torch.float64)])
        found: Tensor = torch.linalg.lstsq(more, torch.cat([wanted[rows], torch.zeros(kept, 5)])).solution
        return found

    def lost(rows: slice, others: slice, ridge: float) -> float:
        left = wanted[rows] - inputs[rows, :kept] @ fitted(others, ridge)
        return float(left.square().sum() / wanted[rows].square().sum())

    first, second = slice(0, 30), slice(30, 60)
    shares = {
        ridge: max(lost(first, second, ridge), lost(second, first, ridge))
        for ridge in (RIDGE * 10**step for step in range(7))
    }
    best = min(shares, key=lambda ridge: shares[ridge])
    assert RIDGE < best < 100, "a case in between"
    assert shares[best] < 1
    whole, half = moments_of(inputs)
    new = ridge_refit(weights, whole, torch.arange(kept), half=half, tokens=tokens)
    torch.testing.assert_close(new[:, :kept] - weights[:, :kept], fitted(slice(0, 60), best).T)


def test_plenty_of_tokens_take_the_smallest_ridge() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, weights = drawn(generator, 800, 12), drawn(generator, 5, 12)
    (second, half), kept = moments_of(inputs), torch.arange(7)
    asked = ridge_refit(weights, second, kept, RIDGE)
    assert torch.equal(ridge_refit(weights, second, kept), asked)
    assert torch.equal(ridge_refit(weights, second, kept, half=half, tokens=800), asked)
    assert not torch.equal(ridge_refit(weights, second, kept, half=half, tokens=200), asked)


def test_rounding_is_outweighed_by_a_larger_ridge() -> None:
    """In few digits the moment of inputs that follow from one another is no longer positive."""
    generator = torch.Generator().manual_seed(3)
    inputs = drawn(generator, 400, 3) @ drawn(generator, 3, 40)
    weights, kept = drawn(generator, 5, 40), torch.arange(30)
    second = (inputs.T @ inputs / 400).bfloat16()
    assert float(torch.linalg.eigvalsh(second.double()).min()) < -RIDGE
    new = ridge_refit(weights, second, kept)
    before = (inputs[:, 30:] @ weights[:, 30:].T).square().mean()
    after = (inputs @ weights.T - inputs[:, :30] @ new[:, :30].T).square().mean()
    assert float(after) < 0.2 * float(before)
