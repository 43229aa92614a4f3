"""Costs of being without layers, straight from the definitions: layers are cut out of a list of modules.

Only for classes whose decoder runs ``model.layers`` one after the other. Nothing is shared with
what is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def without(model: PreTrainedModel, gone: Collection[int]) -> PreTrainedModel:
    """A copy that lacks some layers."""
    less = copy.deepcopy(model)
    decoder = less.get_submodule("model")
    assert isinstance(decoder.layers, nn.ModuleList)
    decoder.layers = nn.ModuleList(layer for n, layer in enumerate(decoder.layers) if n not in gone)
    for number, layer in enumerate(decoder.layers):
        layer.get_submodule("self_attn").layer_idx = number  # type: ignore[assignment]
    less.config.num_hidden_layers = len(decoder.layers)
    return less


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor, gone: Collection[int] = ()) -> Tensor:
    """(N, T, V) float64, block by block."""
    less = without(model, gone)
    return torch.cat(
        [less(input_ids=block[None].long(), use_cache=False).logits for block in tokens]
    ).double()


def loss(model: PreTrainedModel, tokens: Tensor, gone: Collection[int]) -> float:
    """−mean log p(next token)."""
    log_p = logits(model, tokens, gone)[:, :-1].log_softmax(-1)
    return -float(log_p.gather(-1, tokens[:, 1:, None].long()).mean())


def divergence(model: PreTrainedModel, tokens: Tensor, gone: Collection[int]) -> float:
    """Mean over tokens of Σ p (log p − log q)."""
    log_p, log_q = (logits(model, tokens, out).log_softmax(-1) for out in ((), gone))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@torch.no_grad()
def influence(model: PreTrainedModel, tokens: Tensor, first: int, last: int) -> float:
    """1 − mean cosine of the states before layer ``first`` and behind layer ``last``, token by token."""
    ends: list[Tensor] = []
    layers = model.get_submodule("model.layers")
    before = layers.get_submodule(str(first)).register_forward_pre_hook(
        lambda _, given: ends.append(given[0])
    )
    after = layers.get_submodule(str(last)).register_forward_hook(lambda _, __, output: ends.append(output))
    model(input_ids=tokens.long(), use_cache=False)
    before.remove()
    after.remove()
    rows = zip(*(states.flatten(0, 1).double() for states in ends), strict=True)
    cosines = [float(x @ y) / float(x.norm() * y.norm()) for x, y in rows]
    return 1 - sum(cosines) / len(cosines)


Cost = Callable[[PreTrainedModel, Tensor, Collection[int]], float]


def greedy_order(model: PreTrainedModel, tokens: Tensor, cost: Cost) -> list[int]:
    """The layers in the order in which they go: each time the one whose loss costs least."""
    left, gone = list(range(model.config.num_hidden_layers)), list[int]()
    while left:
        costs = (
            {layer: cost(model, tokens, [*gone, layer]) for layer in left} if len(left) > 1 else {left[0]: 0}
        )
        cheapest = min(costs, key=lambda layer: costs[layer])
        gone.append(cheapest)
        left.remove(cheapest)
    return gone
