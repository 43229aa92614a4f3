"""Loss or divergence without each layer, and without every number of layers in a row.

With L layers, the L passes without one each run (L − 1) / 2 layers on average, after one whole pass.
Blocks that end at the same layer go on from there alike, so their states run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from evaluators.importance.depth.costs import Cost, Divergence, Loss
from evaluators.importance.depth.passes import Passes
from evaluators.importance.depth.setting import Setting

#: Of a pass over a batch, what its costs are measured by.
Costs = Callable[[Passes], Cost]
#: Tokens of one pass, if several starts run as one batch.
TOKENS_AT_ONCE = 4096


def by_loss(passes: Passes) -> Cost:
    """Loss of the next token."""
    return Loss(passes.model, passes.tokens)


def by_divergence(passes: Passes) -> Cost:
    """Divergence from the whole teacher, which runs once more if the pass lacks some layers."""
    if not passes.gone:
        return Divergence(passes.model, passes.whole)
    return Divergence(passes.model, Passes(passes.model, passes.axis_map, passes.tokens).whole)


@torch.no_grad()
def without_each(setting: Setting, costs: Costs, gone: Collection[int] = ()) -> Tensor:
    """(L,) float64: the mean cost in nats per token without each layer; NaN for those in ``gone``.

    Args:
        setting: teacher and text.
        costs: loss or divergence.
        gone: layers that are out anyway.
    """
    total, count = torch.zeros(setting.layers, dtype=torch.float64), 0
    total[list(gone)] = torch.nan
    for passes in setting.passes(gone):
        cost = costs(passes)
        number = 0
        for layer in range(setting.layers):
            if layer not in passes.gone:
                found, number = cost(passes.without(layer, layer + 1))
                total[layer] += found
        count += number
    return setting.mean(total, count)


@torch.no_grad()
def without_blocks(setting: Setting, costs: Costs) -> Tensor:
    """(L, L) float64: [n − 1, i] is the mean cost without the n layers from i on; +inf beyond the last.

    Args:
        setting: teacher and text.
        costs: loss or divergence.
    """
    total, count = torch.zeros(setting.layers, setting.layers, dtype=torch.float64), 0
    for passes in setting.passes():
        cost = costs(passes)
        number = 0
        for stop in range(1, setting.layers + 1):
            for start, states in enumerate(_ends(passes, stop)):
                found, number = cost(states)
                total[stop - start - 1, start] += found
        count += number
    beyond = torch.arange(setting.layers)[:, None] + torch.arange(setting.layers) >= setting.layers
    return setting.mean(total, count).masked_fill(beyond, torch.inf)


def _ends(passes: Passes, stop: int) -> Iterator[Tensor]:
    """The final states without the layers from each start to before ``stop``."""
    for starts in _groups(passes, stop):
        if len(starts) == 1:
            yield passes.without(starts[0], stop)
        else:
            yield from passes.handed_over(starts, stop).chunk(len(starts))


def _groups(passes: Passes, stop: int) -> list[Sequence[int]]:
    """Starts that run together."""
    most = max(1, TOKENS_AT_ONCE // passes.tokens.numel()) if passes.stackable else 1
    return [range(first, min(stop, first + most)) for first in range(0, stop, most)]
