"""Streaming sums of outer products, over all tokens and over half of them."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluators.importance.precision import full_precision
from space.cutting.moments import widest


def second_moment(rows: Tensor) -> Tensor:
    """Return Σxxᵀ over (n, D) rows in their dtype, within autocast too."""
    with full_precision(rows):
        return rows.T @ rows


def rms_normalized(states: Tensor) -> Tensor:
    """Return (n, D) float32 from (..., D): each state divided by its root mean square."""
    rows = states.detach().flatten(0, -2).float()
    return rows * rows.square().mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()


class MomentSum:
    """A streaming float64 sum (float32 on devices without float64), and its number of tokens."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.half: Tensor | None = None
        """Of the first half of the tokens; None if it is not kept."""
        self.tokens = 0

    def add(self, sums: Tensor, tokens: int) -> None:
        """Add a sum over ``tokens`` tokens."""
        self.total = _plus(self.total, sums)
        self.tokens += tokens

    def add_rows(self, rows: Tensor, *, halved: bool) -> None:
        """Add Σxxᵀ over (tokens, n) rows.

        Args:
            rows: of one batch, block after block.
            halved: whether the sum over the first half of each batch is kept as well.
        """
        if not halved:
            self.add(second_moment(rows), len(rows))
            return
        first, other = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        sums = second_moment(first)
        self.half = _plus(self.half, sums)
        self.add(sums, len(first))
        self.add(second_moment(other), len(other))

    @property
    def mean(self) -> Tensor:
        """The mean over all tokens, on the CPU; 0 if there were none."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / max(1, self.tokens)

    @property
    def mean_half(self) -> Tensor | None:
        """The first half's part of the mean, on the CPU; None if it is not kept."""
        return None if self.half is None else self.half.cpu() / max(1, self.tokens)

    def finished(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean over all tokens, and the first half's part of it, in float32 on the CPU.

        The sums are used up.
        """
        assert self.total is not None, "nothing was listened to"
        total, half, self.total, self.half = self.total, self.half, None, None
        mean = total.div_(max(1, self.tokens)).float().cpu()
        return mean, None if half is None else half.div_(max(1, self.tokens)).float().cpu()


def _plus(total: Tensor | None, sums: Tensor) -> Tensor:
    if total is None:
        total = torch.zeros_like(sums, dtype=widest(sums.device), requires_grad=False)
    total += sums.detach()
    return total
