"""Ridge regression of a matrix's output on the inputs that it keeps; few tokens cannot mislead it.

A matrix W reads kept inputs x_k and dropped inputs x_d. What the kept ones predict of the lost output W_d x_d
is added to their columns: ``W_d A_dk (A_kk + λI)⁻¹`` with A the mean of x xᵀ. Where tokens are few beside the
inputs, the ridge λ is chosen by cross-validation: fitted on either half of the text, it is measured on the
other, and the ridge is taken whose worse half loses least. Where each of them loses more in one half than the
matrix as it is, nothing is refitted.

Halves consist of whole blocks, if there are several. Tokens of one block depend on one another: generalised
cross-validation, which takes them as independent, repaired a student from 2.7 to 3.6 nats (studies/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from space.cutting.moments import widest

#: The smallest λ relative to the mean square of the kept inputs. With plenty of tokens, the loss of two small
#: Llamas' students moves by less than 0.001 between 1e-6 and 1e-4, and by less than 0.005 at 1e-2.
RIDGE = 1e-4
#: How many times as large a ridge may be, in steps of ten.
_DECADES = 6
#: With fewer tokens a half says nothing, and nothing is refitted.
_FEWEST = 16
#: With so many tokens for each kept input the smallest ridge is as good as the best (studies/repairs).
_PLENTY = 40


def halves_are_kept(tokens: int, inputs: int, experts: bool) -> bool:
    """Whether a ridge may have to be chosen, for which half of the tokens needs a moment of its own.

    Args:
        tokens: that are heard.
        inputs: n.
        experts: whether tokens are shared among experts, of which some may read few.
    """
    return experts or tokens < _PLENTY * inputs


def ridge_refit(
    weights: Tensor,
    second: Tensor,
    kept: Tensor,
    ridge: float | None = None,
    half: Tensor | None = None,
    tokens: float | None = None,
) -> Tensor:
    """Return (out, n) weights whose kept columns compensate for the dropped ones by ridge regression.

    Args:
        weights: (out, n).
        second: (n, n) A; it is computed with where ``weights`` lie, in float64 if that device has it.
        kept: (k,) indices of the kept columns.
        ridge: λ divided by tr(A_kk) / k; None: chosen.
        half: (n, n) the part of A that comes from the first half of the tokens; None: they are plenty.
        tokens: number of tokens; None: not known.
    """
    device, kept = weights.device, kept.to(weights.device)
    system = _System(weights, second.to(device), kept)
    if ridge is not None:
        added = system.fitted(ridge)
    elif half is None or (tokens is not None and tokens >= _PLENTY * len(kept)):
        added = system.smallest()
    elif tokens is not None and tokens < _FEWEST:
        added = None
    else:
        first, other = half.to(device), (second.to(device) - half.to(device))
        added = system.validated(_System(weights, first, kept), _System(weights, other, kept))
    if added is None:
        return weights
    new = weights.clone()
    new[:, kept] += added.to(weights.dtype)
    return new


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

    @cached_property
    def lost(self) -> float:
        """The mean square of the lost output, summed over outputs."""
        second = self._moment[self._dropped][:, self._dropped].to(self._rows.dtype)
        return float(((self._rows @ second) * self._rows).sum())

    def fitted(self, ridge: float) -> Tensor | None:
        """Return (out, k) what is added; None if no input speaks, or rounding outweighs the ridge."""
        shifted, mean = self.second.clone(), float(self.second.diagonal().mean())
        if not mean > 0:
            return None
        shifted.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        return None if int(failed) else torch.cholesky_solve(self.wanted.T, factor).T

    def smallest(self) -> Tensor | None:
        """Return what is added with the smallest ridge that rounding does not outweigh."""
        return next((added for ridge in _ridges() if (added := self.fitted(ridge)) is not None), None)

    def validated(self, one: _System, other: _System) -> Tensor | None:
        """Return what is added with the ridge that is best for both halves; None if nothing should be."""
        best, least = None, 1.0
        for ridge in _ridges():
            share = max(one._share_lost(other.fitted(ridge)), other._share_lost(one.fitted(ridge)))
            if share < least:
                best, least = ridge, share
            elif best is not None:
                break
        return None if best is None else self.fitted(best)

    def _share_lost(self, added: Tensor | None) -> float:
        """Return which share of the lost output is still lost with what another half of the text suggests."""
        if added is None or not self.lost > 0:
            return inf
        left = self.lost + float((((added @ self.second) - 2 * self.wanted) * added).sum())
        return left / self.lost


def _ridges() -> Iterator[float]:
    return (RIDGE * 10**step for step in range(_DECADES + 1))
