"""Directions of the residual stream to keep, in place of coordinates.

With every norm's weights folded into the matrices that read it, let x̂ be the stream over its root mean
square at the norms' inputs, C the mean of x̂x̂ᵀ over tokens and norms, and M the sum of WᵀW / tr(WᵀW C)
over all matrices W that read the stream. *Principal* directions are the leading eigenvectors of C;
*weighted* ones those of M^¼ C M^¼, which also asks how much each direction is read. One rotation serves
the whole model, so that every size is a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class BasisName(StrEnum):
    """Which directions of the stream students keep."""

    COORDINATE = "coordinate"
    PRINCIPAL = "principal"
    WEIGHTED = "weighted"


@dataclass(frozen=True, eq=False)
class Basis:
    """A turned basis of the stream of D dimensions."""

    rotation: Tensor
    """(D, D) orthogonal float32, new directions in columns, best first."""
    energy: Tensor
    """(D,) float32, mean square of x̂ along each new direction; their sum is D."""

    def gain(self, kept: int) -> float:
        """What a norm over the first ``kept`` directions has to multiply by.

        It divides by their root mean square, where the teacher divides by that of all; on average the
        two differ by √(Σ energy / kept).
        """
        return float((self.energy[:kept].sum() / kept).sqrt())


def basis_of(name: BasisName, covariance: Tensor, reading: Tensor) -> Basis:
    """The principal or the weighted basis.

    Args:
        name: which; the coordinate basis needs no rotation.
        covariance: (D, D) C, float64.
        reading: (D, D) M, float64; the principal basis does not look at it.
    """
    assert name is not BasisName.COORDINATE, "coordinates are ranked, not turned"
    root = _power(reading, 0.25) if name is BasisName.WEIGHTED else torch.eye(len(covariance)).double()
    rotation = torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(-1)
    energy = (rotation * (covariance @ rotation)).sum(0)
    return Basis(rotation.float().contiguous(), energy.float())


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp_min(0).pow(exponent)) @ vectors.T
    return power
