"""The cost of removing layers, one by one or in blocks: loss, divergence or block influence.

Block influence is 1 − cosine between the states at the two ends of a layer or block, averaged over tokens
(arXiv 2407.14679, section 2.2, for one layer; arXiv 2403.17887, section 3.2, takes the arc cosine for
several). The states at all L + 1 layer boundaries of a batch are held at once and compared in pairs.

Loss and divergence need one pass per removed layer or block. Without one layer each, L passes run (L − 1) / 2
layers on average, after one full pass. Blocks that end at the same layer run the same remaining layers, so
their states run as one batch. Logits are computed for a slice of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import logits_of, token_slice, vocabulary_size
from evaluators.importance.layer_passes import Boundaries, DepthSetting, PartialPasses, recording_boundaries
from evaluators.importance.precision import full_precision
from space.axes.axis_map import AxisMap, layer_modules


class Cost(Protocol):
    """Maps final states (B, T, D) to the sum of their tokens' costs in nats, and the number of summands."""

    heads: int
    """How often the head runs over them."""

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """Return the sum, and the number."""


class NextTokenLoss:
    """Cross-entropy of the next token, in nats."""

    heads = 1

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        assert tokens.shape[1] > 1, "a block of one token has none to predict"
        self.model, self.targets = model, tokens[:, 1:].flatten()

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """Return the sum over the predicted tokens, and their number.

        Args:
            states: (B, T, D) final states.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.targets.device)
        size = token_slice(vocabulary_size(self.model))
        rows = states[:, :-1].flatten(0, 1)
        for chunk, targets in zip(rows.split(size), self.targets.split(size), strict=True):
            logits = logits_of(self.model, chunk).float()
            total += nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum").to(total)
        return float(total), len(self.targets)


class TeacherDivergence:
    """KL(p‖q) = Σ p (log p − log q) in nats, with p the full teacher's distribution and q the given one."""

    heads = 2

    def __init__(self, model: PreTrainedModel, whole: Tensor) -> None:
        self.model, self.whole = model, whole.flatten(0, 1)

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """Return the sum over the tokens, and their number.

        Args:
            states: (B, T, D) final states.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.whole.device)
        size = token_slice(2 * vocabulary_size(self.model))
        rows = states.flatten(0, 1)
        for chunk, wanted in zip(rows.split(size), self.whole.split(size), strict=True):
            p, q = (logits_of(self.model, part).float().log_softmax(-1) for part in (wanted, chunk))
            total += nn.functional.kl_div(q, p, reduction="sum", log_target=True).to(total)
        return float(total), len(rows)


_MIN_NORM = 1e-16
#: Tokens whose unit vectors are held at once.
_TOKENS_AT_ONCE = 512


class BoundaryCosines:
    """Cosines between each layer boundary and all later ones, summed over tokens in float64."""

    def __init__(self, model: PreTrainedModel, axis_map: AxisMap) -> None:
        self.layers = layer_modules(model, axis_map)
        self.total = torch.zeros(len(self.layers) + 1, len(self.layers) + 1, dtype=torch.float64)
        self.tokens = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context, add every forward pass; the states of one pass at a time are held."""
        boundaries = Boundaries()

        def passed(_: nn.Module, __: Any, ___: Any) -> None:
            self.add(boundaries.states)
            boundaries.clear()

        with recording_boundaries(self.layers, boundaries):
            handle = self.layers[-1].register_forward_hook(passed)
            try:
                yield
            finally:
                handle.remove()

    def add(self, states: Sequence[Tensor]) -> None:
        """Add L + 1 tensors (..., D) of the same tokens' states; states of norm 0 have cosine 0."""
        rows = [values.detach().reshape(-1, values.shape[-1]) for values in states]
        for parts in zip(*(values.split(_TOKENS_AT_ONCE) for values in rows), strict=True):
            units = torch.stack([part.to(parts[0].device).float() for part in parts])
            units /= torch.linalg.vector_norm(units, dim=-1, keepdim=True).clamp_min(_MIN_NORM)
            # A matrix product could round equal layers differently, depending on their position.
            for number, one in enumerate(units):
                with full_precision(units):
                    cosines = torch.linalg.vecdot(one, units[number:])
                self.total[number, number:] += cosines.sum(-1, dtype=torch.float64).cpu()
        self.tokens += len(rows[0])


def block_influence(cosines: Tensor) -> Tensor:
    """Return (L, L): [n − 1, i] is 1 − cosine of boundaries i and i + n; +inf beyond the last layer.

    Args:
        cosines: (L + 1, L + 1) mean cosines over tokens between each boundary and later ones.
    """
    blocks = torch.full_like(cosines[1:, 1:], torch.inf)
    for length in range(1, len(cosines)):
        blocks[length - 1, : len(cosines) - length] = 1 - cosines.diagonal(length)
    return blocks


#: Makes the cost function of a batch from its full pass.
Costs = Callable[[PartialPasses], Cost]
#: Most tokens of a pass in which several starts run as one batch.
TOKENS_AT_ONCE = 4096


def by_loss(passes: PartialPasses) -> Cost:
    """Return the cost function of a batch: the loss of the next token."""
    return NextTokenLoss(passes.model, passes.tokens)


def by_divergence(passes: PartialPasses) -> Cost:
    """Return the cost function of a batch: the divergence from the full teacher.

    The full teacher runs once more if some layers are removed in every pass.
    """
    if not passes.removed:
        return TeacherDivergence(passes.model, passes.whole)
    return TeacherDivergence(passes.model, PartialPasses(passes.model, passes.axis_map, passes.tokens).whole)


@torch.no_grad()
def without_each(setting: DepthSetting, costs: Costs, removed: Collection[int] = ()) -> Tensor:
    """Return (L,) float64: the mean cost in nats per token without each layer; NaN for those in ``removed``.

    Args:
        setting: teacher and text.
        costs: ``by_loss`` or ``by_divergence``.
        removed: layers that are removed in every pass.
    """
    total, count = torch.zeros(setting.layers, dtype=torch.float64), 0
    total[list(removed)] = torch.nan
    for passes in setting.passes(removed):
        cost = costs(passes)
        number = 0
        for layer in range(setting.layers):
            if layer not in passes.removed:
                found, number = cost(passes.without(layer, layer + 1))
                total[layer] += found
                setting.spent(len(passes.tokens), passes.layers_from(layer + 1), cost.heads)
        count += number
    return setting.mean(total, count)


@torch.no_grad()
def without_blocks(setting: DepthSetting, costs: Costs) -> Tensor:
    """Return (L, L) float64: [n − 1, i] is the mean cost without the n layers from i; +inf beyond the last.

    Args:
        setting: teacher and text.
        costs: ``by_loss`` or ``by_divergence``.
    """
    total, count = torch.zeros(setting.layers, setting.layers, dtype=torch.float64), 0
    for passes in setting.passes():
        cost = costs(passes)
        number = 0
        for stop in range(1, setting.layers + 1):
            for start, states in enumerate(_states_without_blocks(passes, stop)):
                found, number = cost(states)
                total[stop - start - 1, start] += found
                setting.spent(len(passes.tokens), passes.layers_from(stop), cost.heads)
        count += number
    beyond = torch.arange(setting.layers)[:, None] + torch.arange(setting.layers) >= setting.layers
    return setting.mean(total, count).masked_fill(beyond, torch.inf)


def _states_without_blocks(passes: PartialPasses, stop: int) -> Iterator[Tensor]:
    """Yield for each start from 0 the final states without layers start to ``stop - 1``."""
    for starts in _start_groups(passes, stop):
        if len(starts) == 1:
            yield passes.without(starts[0], stop)
        else:
            yield from passes.final_states_from(starts, stop).chunk(len(starts))


def _start_groups(passes: PartialPasses, stop: int) -> list[Sequence[int]]:
    """Split the starts before ``stop`` into groups that run as one batch each."""
    most = max(1, TOKENS_AT_ONCE // passes.tokens.numel()) if passes.stackable else 1
    return [range(first, min(stop, first + most)) for first in range(0, stop, most)]


#: Maps removed layers to (L,) scores, higher is more important; those of removed layers are ignored.
Scoring = Callable[[Collection[int]], Tensor]


def removal_order(layers: int, scoring: Scoring) -> list[int]:
    """Return all layers in the order of greedy removal; among equal scores the later layer goes first.

    Args:
        layers: the number of layers.
        scoring: called layers − 1 times.
    """
    order: list[int] = []
    while len(order) < layers - 1:
        scores = scoring(order).tolist()
        order.append(min((n for n in range(layers) if n not in order), key=lambda n: (scores[n], -n)))
    return [*order, *(n for n in range(layers) if n not in order)]


def removal_ranks(order: list[int]) -> Tensor:
    """Return (L,) float32: the position of each layer in the order of removal, 0 for the first."""
    return torch.tensor([order.index(layer) for layer in range(len(order))]).float()


@torch.no_grad()
def influence_without(setting: DepthSetting, removed: Collection[int]) -> Tensor:
    """Return (L,) float64: the block influence of each layer without the layers in ``removed``.

    Args:
        setting: teacher and text.
        removed: removed layers; their own values are meaningless.
    """
    total, count = torch.zeros(setting.layers, dtype=torch.float64), 0
    for passes in setting.passes(removed):
        for layer, (before, after) in enumerate(pairwise(passes.boundaries.states)):
            ends = before.float(), after.to(before.device).float()
            with full_precision(before):
                cosines = nn.functional.cosine_similarity(*ends, dim=-1)
            total[layer] += float(cosines.sum(dtype=torch.float64))
            number = cosines.numel()
        count += number
    return 1 - setting.mean(total, count)
