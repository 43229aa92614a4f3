"""Importance written straight from the formulas of arXiv 2407.14679, section 2.2, in numpy.

Nothing of the axis map or of the streaming sums is used: the modules are named by hand, activations
are recorded for one block after the other, and the scores are computed from all of them at the end.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    hidden: Grid
    mlp: Grid
    heads: Grid
    layers: Grid


def reference_scores(model: PreTrainedModel, calibration: Tensor) -> Scores:
    """(D,), (L, F), (L, H) and (L,) scores of a model of the Llama layout."""
    inputs, outputs = recorded(model, calibration)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    norms = [f"layers.{i}.{name}_layernorm" for i in range(layers) for name in ("input", "post_attention")]
    hidden = sum(l2_of_means(outputs[name]) for name in [*norms, "norm"])
    mlp = [l2_of_means(inputs[f"layers.{i}.mlp.down_proj"]) for i in range(layers)]
    attention = [inputs[f"layers.{i}.self_attn.o_proj"] for i in range(layers)]
    by_head = [values.reshape(*values.shape[:2], heads, -1) for values in attention]
    return Scores(
        hidden=np.asarray(hidden),
        mlp=np.stack(mlp),
        heads=np.stack([l2_of_means(np.sqrt((values**2).sum(-1))) for values in by_head]),
        layers=np.array([influence(inputs[f"layers.{i}"], outputs[f"layers.{i}"]) for i in range(layers)]),
    )


def recorded(model: PreTrainedModel, calibration: Tensor) -> tuple[dict[str, Grid], dict[str, Grid]]:
    """(N, T, units) inputs and outputs of every module of the decoder, in float64."""
    inputs: dict[str, list[Grid]] = defaultdict(list)
    outputs: dict[str, list[Grid]] = defaultdict(list)

    def record(name: str, _: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            inputs[name].append(arguments[0].double().numpy())
        if isinstance(output, Tensor):
            outputs[name].append(output.double().numpy())

    decoder = model.base_model
    modules = [(name, module) for name, module in decoder.named_modules() if name]
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in modules]
    with torch.no_grad():
        for block in calibration:
            decoder(input_ids=block[None].long(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return (
        {name: np.concatenate(values) for name, values in inputs.items() if values[0].ndim == 3},
        {name: np.concatenate(values) for name, values in outputs.items() if values[0].ndim == 3},
    )


def l2_of_means(values: Grid) -> Grid:
    """√Σ over blocks of (mean over the sequence of |a|)²."""
    return np.asarray(np.sqrt((np.abs(values).mean(axis=1) ** 2).sum(axis=0)))


def influence(before: Grid, after: Grid) -> float:
    """1 − mean over all tokens of the cosine between a layer's input and output."""
    dots = (before * after).sum(-1)
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(1 - (dots / lengths).mean())
