"""Directions of the stream on covariances whose eigenvectors are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from space.cutting.basis import Basis, BasisName, basis_of, helmert


def orthogonal(size: int, seed: int) -> Tensor:
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q: Tensor = torch.linalg.qr(noise)[0]
    return q


@given(st.integers(2, 12), st.integers(0, 99))
def test_principal_directions_are_the_known_ones_best_first(size: int, seed: int) -> None:
    q = orthogonal(size, seed)
    energy = torch.arange(size, 0, -1).double()
    found = basis_of(BasisName.PRINCIPAL, q @ energy.diag() @ q.T, torch.eye(size).double())
    torch.testing.assert_close(
        (found.rotation.double().T @ q).abs(), torch.eye(size).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.energy.double(), energy, atol=1e-4, rtol=0)


@given(st.integers(2, 12), st.integers(0, 99))
def test_the_rotation_is_orthogonal_and_keeps_the_energy(size: int, seed: int) -> None:
    noise = torch.randn(size, 3 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    covariance, reading = (
        noise @ noise.T,
        orthogonal(size, seed) @ (noise @ noise.T) @ orthogonal(size, seed).T,
    )
    for name in (BasisName.PRINCIPAL, BasisName.WEIGHTED):
        found = basis_of(name, covariance, reading)
        torch.testing.assert_close(found.rotation.T @ found.rotation, torch.eye(size), atol=1e-4, rtol=0)
        assert float(found.energy.sum()) == pytest.approx(float(covariance.trace()), rel=1e-4)


def test_what_is_read_more_comes_first_in_the_weighted_basis() -> None:
    covariance, reading = (
        torch.tensor([3.0, 2.0, 1.0]).double().diag(),
        torch.tensor([1.0, 1.0, 81.0]).double().diag(),
    )
    principal = basis_of(BasisName.PRINCIPAL, covariance, reading)
    weighted = basis_of(BasisName.WEIGHTED, covariance, reading)
    assert principal.rotation.abs().argmax(0).tolist() == [0, 1, 2]
    assert weighted.rotation.abs().argmax(0).tolist() == [2, 0, 1]  # 81^½ · 1 = 9 > 3 > 2
    assert weighted.energy.tolist() == pytest.approx([1, 3, 2])


def test_the_gain_is_the_root_of_the_mean_energy_kept() -> None:
    basis = Basis(torch.eye(4), torch.tensor([2.0, 1.0, 0.7, 0.3]))
    assert basis.gain(1) == pytest.approx(math.sqrt(2))
    assert basis.gain(2) == pytest.approx(math.sqrt(1.5))
    assert basis.gain(4) == pytest.approx(1)


def test_coordinates_are_not_turned() -> None:
    with pytest.raises(AssertionError, match="coordinates are ranked"):
        basis_of(BasisName.COORDINATE, torch.eye(2).double(), torch.eye(2).double())


@given(st.integers(2, 20))
def test_helmert_has_a_constant_column_and_sees_the_rest_in_the_first_entries(size: int) -> None:
    frame = helmert(size)
    torch.testing.assert_close(frame.T @ frame, torch.eye(size).double())
    torch.testing.assert_close(frame[:, -1], torch.full((size,), size**-0.5).double())
    for column in range(size - 1):
        assert not frame[column + 2 :, column].any()
        first = frame[: column + 1, column]
        assert bool((first == first[0]).all())


@given(st.integers(3, 12), st.integers(0, 99), st.data())
def test_of_centred_states_k_coordinates_keep_the_best_directions_but_one(
    size: int, seed: int, data: st.DataObject
) -> None:
    """What a centring norm sees of k coordinates is as long as the projection on k − 1 directions."""
    kept = data.draw(st.integers(2, size))
    q = orthogonal(size - 1, seed)
    directions = helmert(size)[:, :-1] @ q
    energy = torch.arange(size - 1, 0, -1).double()
    covariance = directions @ energy.diag() @ directions.T
    found = basis_of(BasisName.PRINCIPAL, covariance, torch.eye(size).double(), centred=True)
    rotation = found.rotation.double()
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(size).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation.sum(0), torch.ones(size).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.energy.double(), torch.cat([torch.zeros(1).double(), energy]), atol=1e-4, rtol=0
    )
    states = torch.randn(5, size, generator=torch.Generator().manual_seed(seed)).double()
    coordinates = (states @ rotation)[:, :kept]
    seen = coordinates - coordinates.mean(-1, keepdim=True)
    projected = states @ directions[:, : kept - 1]
    torch.testing.assert_close(seen.norm(dim=-1), projected.norm(dim=-1), atol=1e-5, rtol=1e-5)
