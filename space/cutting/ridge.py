"""Ridge regression of a matrix's output on the inputs that it keeps; few tokens cannot mislead it.

A matrix W reads kept inputs x_k and dropped inputs x_d. What the kept ones predict of the lost output W_d x_d
is added to their columns: ``W_d A_dk (A_kk + λI)⁻¹`` with A the mean of x xᵀ over N tokens. The ridge λ is
the one with the smallest generalised cross-validation (Golub, Heath and Wahba 1979). It foretells the error
on other tokens from the error on these, E(λ), and the degrees of freedom, f(λ) = tr(A_kk (A_kk + λI)⁻¹):

    V(λ) = E(λ) / (1 − γ f(λ) / N)²

With γ = 1, pure noise would be refitted as often as left alone; γ = 2 leaves it alone, and allows for tokens
of a text that depend on one another. Nothing is refitted where no λ has a smaller V than λ = ∞, whose V is
the error of the matrix as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from space.cutting.moments import widest

#: The smallest λ relative to the mean square of the kept inputs. On two small Llamas, cut to two thirds of
#: their neurons, the loss of the repaired student moved by less than 0.001 between 1e-7 and 1e-3.
RIDGE = 1e-4
#: How many times as large a ridge may be, in steps of ten.
_DECADES = 6
#: γ, see above.
_INFLATION = 2.0
#: With fewer tokens V is a matter of chance, and nothing is refitted.
_FEWEST = 16
#: With so many tokens for each kept input, no ridge lowers V by more than a twentieth.
_PLENTY = 80


def ridge_refit(
    weights: Tensor, second: Tensor, kept: Tensor, ridge: float | None = None, tokens: float | None = None
) -> Tensor:
    """Return (out, n) weights whose kept columns compensate for the dropped ones by ridge regression.

    Args:
        weights: (out, n).
        second: (n, n) A; it is computed with where ``weights`` lie, in float64 if that device has it.
        kept: (k,) indices of the kept columns.
        ridge: λ divided by tr(A_kk) / k; None: the one that generalised cross-validation prefers.
        tokens: N; None: very many.
    """
    system = _System(weights, second.to(weights.device), kept.to(weights.device))
    if not system.mean > 0:
        return weights
    added = system.fitted(ridge * system.mean) if ridge is not None else system.best(tokens)
    if added is None:
        return weights
    new = weights.clone()
    new[:, kept.to(weights.device)] += added.to(weights.dtype)
    return new


@dataclass(frozen=True)
class _Fit:
    """What is added to the kept columns (out, k), and V, the mean square of what other tokens still lose."""

    added: Tensor
    foretold: float


class _System:
    """The regression of one matrix (out, n) with moment (n, n) on k kept inputs."""

    def __init__(self, weights: Tensor, second: Tensor, kept: Tensor) -> None:
        dropped = torch.ones(len(second), dtype=torch.bool, device=second.device)
        dropped[kept] = False
        self._dropped = dropped.nonzero().flatten()
        self._moment, dtype = second, widest(second.device)
        self._rows = weights[:, self._dropped].to(dtype)
        self.second = second[kept][:, kept].to(dtype)
        """(k, k) A_kk."""
        self.wanted = self._rows @ second[self._dropped][:, kept].to(dtype)
        """(out, k) W_d A_dk."""
        self.mean = float(self.second.diagonal().mean())
        """The mean square of the kept inputs."""

    @cached_property
    def lost(self) -> float:
        """E(∞), the mean square of the lost output, summed over outputs."""
        second = self._moment[self._dropped][:, self._dropped].to(self._rows.dtype)
        return float(((self._rows @ second) * self._rows).sum())

    def best(self, tokens: float | None) -> Tensor | None:
        """Return what is added with the best ridge; None if nothing should be."""
        if tokens is None or tokens >= _PLENTY * len(self.second):
            return next((fit for ridge in self._ridges() if (fit := self.fitted(ridge)) is not None), None)
        if tokens < _FEWEST:
            return None
        best, least = None, self.lost
        for ridge in self._ridges():
            fit = self._fit(ridge, tokens)
            if fit is not None and fit.foretold < least:
                best, least = fit.added, fit.foretold
            elif best is not None:
                break
        return best

    def _ridges(self) -> Iterator[float]:
        return (RIDGE * 10**step * self.mean for step in range(_DECADES + 1))

    def fitted(self, ridge: float) -> Tensor | None:
        """Return what is added with a ridge; None if rounding errors outweigh it."""
        factor = self._factor(ridge)
        return None if factor is None else torch.cholesky_solve(self.wanted.T, factor).T

    def _fit(self, ridge: float, tokens: float) -> _Fit | None:
        """The error on these tokens follows from W_d A_dk = B (A_kk + λI), where B is what is added."""
        factor = self._factor(ridge)
        if factor is None:
            return None
        inverse = torch.cholesky_inverse(factor)
        freedom = len(self.second) - ridge * float(inverse.trace())
        left = 1 - _INFLATION * freedom / tokens
        if left <= 0:
            return None
        added = self.wanted @ inverse
        error = self.lost - float((self.wanted * added).sum() + ridge * added.square().sum())
        return _Fit(added, max(0.0, error) / left**2)

    def _factor(self, ridge: float) -> Tensor | None:
        shifted = self.second.clone()
        shifted.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        return None if int(failed) else factor
