"""Measuring what a class multiplies embeddings and logits by, at one width and at another."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from space.axes.axis_map import AxisMap, layer_modules
from space.axes.scales import Scales


@torch.no_grad()
def measured(wide: PreTrainedModel, narrow: PreTrainedModel, axis_map: AxisMap, narrow_hidden: int) -> Scales:
    """The powers of hidden by which a class multiplies embeddings and logits.

    Args:
        wide: a small model with real weights.
        narrow: one of the same class with fewer hidden dimensions.
        axis_map: of ``wide``.
        narrow_hidden: its number of hidden dimensions.
    """
    ratio = math.log(axis_map.teacher.hidden / narrow_hidden)

    def power(of: Any) -> float:
        factors = of(wide), of(narrow)
        if not all(factors) or not ratio:
            return 0.0
        found = math.log(factors[0] / factors[1]) / ratio
        return round(found, 3) if abs(found) > 1e-3 else 0.0

    return replace(
        axis_map.scales,
        embedding=power(lambda model: _embedding_factor(model, axis_map)),
        head=power(lambda model: _head_factor(model, axis_map)),
        norm_offset=_norm_offset(wide, axis_map),
    )


def _embedding_factor(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """How much larger two tokens differ before the first layer than in the table; 0 if not proportional."""
    seen: list[Tensor] = []

    def note(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        seen.append((arguments[0] if arguments else keywords["hidden_states"]).clone())

    handle = layer_modules(model, axis_map)[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        for token in (1, 2):
            model(input_ids=torch.tensor([[token]]), use_cache=False)
    finally:
        handle.remove()
    table = model.get_parameter(axis_map.roles.embedding)
    given, found = (table[1] - table[2]), (seen[0] - seen[1]).flatten()
    if given.shape != found.shape:
        return 0.0
    factor = float(found @ given / (given @ given))
    return factor if factor > 0 and torch.allclose(found, factor * given, rtol=1e-3, atol=1e-4) else 0.0


def _head_factor(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """Logits over states times the head's matrix, for weights too small for a cap to bend; 0 if not alike."""
    head, norm = model.get_output_embeddings(), axis_map.roles.final_norm
    body = model.base_model
    if body is model and norm is not None:
        body = model.get_submodule(norm.rpartition(".")[0])
    if not isinstance(head, nn.Linear) or body is model:
        return 0.0
    whole, seen = head.weight.clone(), []
    handle = body.register_forward_hook(
        lambda _, __, output: seen.append(output if isinstance(output, Tensor) else output[0])
    )
    try:
        head.weight.mul_(1e-4)
        logits = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits
        plain = seen[0] @ head.weight.T
    finally:
        handle.remove()
        head.weight.copy_(whole)
    if head.bias is not None:
        logits = logits - head.bias
    factor = float(logits.flatten() @ plain.flatten() / plain.norm() ** 2)
    return factor if factor > 0 and torch.allclose(logits, factor * plain, rtol=1e-2, atol=1e-7) else 0.0


def _norm_offset(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """What the final norm adds to its weight: 0 in most classes, 1 in some."""
    name = axis_map.roles.final_norm
    if name is None:
        return 0.0
    norm = copy.deepcopy(model.get_submodule(name.rpartition(".")[0]))
    outputs = []
    for value in (0.0, 1.0):
        for kind, parameter in norm.named_parameters():
            parameter.fill_(0.0 if kind == "bias" else value)
        states = torch.linspace(-1, 2, axis_map.teacher.hidden)[None, None]
        outputs.append(float(norm(states).abs().sum()))
    zero, one = outputs
    return round(zero / (one - zero), 3) if one != zero else 0.0
