"""Orders of layers by samples of the blocks, and how far they agree with the order by all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import kendalltau
from torch import Tensor

from studies.bench.results import Row

#: Shares of the blocks.
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
_DRAWS = 16


def draws(blocks: int, fraction: float) -> list[list[int]]:
    """Samples without replacement, the same in every call."""
    size, generator = max(1, round(blocks * fraction)), torch.Generator().manual_seed(0)
    return [torch.randperm(blocks, generator=generator)[:size].tolist() for _ in range(_DRAWS)]


def block_losses(rows: Sequence[Row], teacher: str, precision: str = "float32") -> Tensor:
    """The losses of one teacher without each layer, (blocks, L) float64."""
    found = [
        row
        for row in rows
        if (row["kind"], row["teacher"], row.get("precision")) == ("block", teacher, precision)
    ]
    return torch.tensor([row["loss"] for row in sorted(found, key=lambda row: row["block"])]).double()


def agreement(losses: Tensor, others: Tensor) -> float:
    """Kendall's tau of two orders of layers, (L,) each."""
    return float(kendalltau(losses.numpy(), others.numpy()).statistic)


def dropped(losses: Tensor, count: int) -> tuple[int, ...]:
    """The layers without which the loss is lowest, in the order of the model."""
    return tuple(sorted(losses.argsort(stable=True)[:count].tolist()))
