"""Bases for the value path of attention, which the entries of a head can be changed to and cut along.

Attention mixes the values of tokens, never their entries, so v → Av with W_o → W_o A⁻¹ changes nothing, for
any invertible A of a KV head and the queries' heads of its group. Stock classes mostly give values as many
entries as keys, so that no student can be cut like that; the teacher of full size with entries masked
tells what it would give. Llama's layout only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.moment_sum import MomentSum

_BLOCKS_AT_ONCE = 8
#: Of what entries are read with, relative to the largest: to divide by less would lose digits.
_LEAST_READ = 1e-6


class Entries(StrEnum):
    """Which entries of a KV head's values are kept."""

    COORDINATE = "coordinate"
    """Those with the largest L2 norm."""
    PRINCIPAL = "principal"
    """The leading eigenvectors of E[vvᵀ]."""
    WEIGHTED = "weighted"
    """Those that keep most of what the output projection makes of v: of M^½ E[vvᵀ] M^½, M = W_oᵀW_o."""


@torch.no_grad()
def value_moments(model: PreTrainedModel, calibration: Tensor) -> list[Tensor]:
    """Of each layer (K, d, d) float64 E[vvᵀ] of every KV head."""
    layers: list[Any] = list(model.get_submodule("model.layers").children())
    sums = [MomentSum() for _ in layers]
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(_noting(of, layer.self_attn.head_dim))
        for layer, of in zip(layers, sums, strict=True)
    ]
    for batch in calibration.long().split(_BLOCKS_AT_ONCE):
        final_states(model, batch)
    for hook in hooks:
        hook.remove()
    return [of.mean for of in sums]


def _noting(sums: MomentSum, size: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        values = output.detach().flatten(0, -2).unflatten(-1, (-1, size))
        sums.add(torch.einsum("nki,nkj->kij", values, values), len(values))

    return note


@torch.no_grad()
def with_values(
    model: PreTrainedModel, moments: list[Tensor], entries: Entries, kept: int
) -> PreTrainedModel:
    """A copy of the model with the values of every KV head changed to ``entries``, all but the best at zero.

    Args:
        model: of Llama's layout.
        moments: from ``value_moments``.
        entries: which.
        kept: of d.
    """
    changed = copy.deepcopy(model)
    layers: list[Any] = list(changed.get_submodule("model.layers").children())
    for layer, second in zip(layers, moments, strict=True):
        value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        heads, size = second.shape[:2]
        rows = value.double().unflatten(0, (heads, size))
        columns = output.double().unflatten(1, (heads, -1, size))  # (D, K, G, d)
        read = torch.einsum("okgi,okgj->kij", columns, columns)
        into, back = zip(*(_change(c, m, entries) for c, m in zip(second, read, strict=True)), strict=True)
        mask = (torch.arange(size) < kept).double()[:, None]
        value.copy_((torch.stack(into) * mask @ rows).flatten(0, 1))
        output.copy_(torch.einsum("okgi,kij->okgj", columns, torch.stack(back)).flatten(1))
    return changed


def _change(second: Tensor, read: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    """(d, d) A, best entries first, and A⁻¹."""
    match entries:
        case Entries.COORDINATE:
            into = torch.eye(len(second)).double()[second.diagonal().argsort(descending=True, stable=True)]
            return into, into.T
        case Entries.PRINCIPAL:
            into = torch.linalg.eigh(second).eigenvectors.flip(-1).T
            return into, into.T
        case Entries.WEIGHTED:
            values, vectors = torch.linalg.eigh(read)
            roots = values.clamp_min(_LEAST_READ * float(values.max())).sqrt()
            root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
            best = torch.linalg.eigh(root @ second @ root).eigenvectors.flip(-1)
            return best.T @ root, inverse @ best
