"""Which modules of a layer read a mix of tokens: the projections that lead out of attention.

In a class without a head size of its own, hidden and heads have the same length and no shape tells
them apart. Behaviour does: a projection out of attention is the one whose input at a token changes
when only another token of the layer's input is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from space.axes.scales import starred


@torch.no_grad()
def modules_that_mix(model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor) -> frozenset[str]:
    """The names (numbers starred) of the first linear module of each layer whose input mixes tokens.

    Args:
        model: a small one of the class, with real weights, in evaluation mode.
        layers: its decoder layers.
        tokens: (1, T) token numbers, T > 1.
    """
    inputs: list[Tensor] = []
    with _layer_inputs(layers, inputs, None):
        before = _linear_inputs(model, layers, tokens)
    changed = [states.clone() for states in inputs]
    for states in changed:
        states[:, 0] += torch.linspace(-1, 1, states.shape[-1])
    with _layer_inputs(layers, [], changed):
        after = _linear_inputs(model, layers, tokens)
    mixed: dict[int, str] = {}
    for name, states in before.items():
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        if name in after and not torch.equal(states[:, 1:], after[name][:, 1:]):
            mixed.setdefault(layer, name)
    return frozenset(starred(f"{name}.weight").removesuffix(".weight") for name in mixed.values())


def _linear_inputs(model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor) -> dict[str, Tensor]:
    """(1, T, width) what each linear module inside the layers reads."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)):

            def note(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                if arguments and arguments[0].ndim == 3 and arguments[0].shape[1] == tokens.shape[1]:
                    seen[name] = arguments[0].clone()

            handles.append(module.register_forward_pre_hook(note))
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _layer_inputs(
    layers: list[nn.Module], noted: list[Tensor], replaced: list[Tensor] | None
) -> Iterator[None]:
    """Note what each layer reads, or have it read something else."""
    handles = []
    for number, layer in enumerate(layers):

        def swap(_: nn.Module, arguments: Any, keywords: dict[str, Any], number: int = number) -> Any:
            states = arguments[0] if arguments else keywords["hidden_states"]
            noted.append(states)
            if replaced is None:
                return None
            if arguments:
                return (replaced[number], *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": replaced[number]}

        handles.append(layer.register_forward_pre_hook(swap, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
