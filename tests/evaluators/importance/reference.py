"""Importance written straight from the formulas of arXiv 2407.14679, section 2.2, in numpy.

Nothing of the axis map or of the streaming sums is used: the modules are named by hand, activations
are recorded for one block after the other, and the scores are computed from all of them at the end.
What an expert reads is computed from its weights and from what its layer was given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from space.axes.architecture import Axis

Grid = NDArray[np.float64]
#: Of (n, D) tokens, an expert's number and the module of all experts: (n, I) what its last matrix reads.
Expert = Callable[[Tensor, int, nn.Module], Tensor]


@dataclass(frozen=True)
class Names:
    """The modules of a class, within its decoder; ``{}`` stands for a layer's number."""

    layer: str = "layers.{}"
    norms: tuple[str, ...] = ("layers.{}.input_layernorm", "layers.{}.post_attention_layernorm")
    last_norm: str = "norm"
    neurons: dict[Axis, str] | None = None
    """The modules that read neurons; the MLP's as in Llama by default."""
    heads: str = "layers.{}.self_attn.o_proj"
    experts: str | None = None
    expert: Expert | None = None


def reference_scores(
    model: PreTrainedModel,
    calibration: Tensor,
    names: Names | None = None,
    aggregate: Callable[[Grid], Grid] | None = None,
) -> dict[Axis, Grid]:
    """The scores of every axis that ``names`` knows, in the shapes of ``Ranking.scores``."""
    aggregate = aggregate or l2_of_means
    names = names or Names()
    inputs, outputs = recorded(model, calibration)
    layers, heads = range(model.config.num_hidden_layers), model.config.num_attention_heads
    norms = [name.format(i) for i in layers for name in names.norms]
    attention = [inputs[names.heads.format(i)] for i in layers]
    by_head = [values.reshape(*values.shape[:2], heads, -1) for values in attention]
    at = [names.layer.format(i) for i in layers]
    scores = {
        Axis.HIDDEN: np.asarray(sum(aggregate(outputs[name]) for name in [*norms, names.last_norm])),
        Axis.HEADS: np.stack([aggregate(np.sqrt((values**2).sum(-1))) for values in by_head]),
        Axis.LAYERS: np.array([influence(inputs[name], outputs[name]) for name in at]),
    }
    neurons = {Axis.MLP: "layers.{}.mlp.down_proj"} if names.neurons is None else names.neurons
    for axis, name in neurons.items():
        scores[axis] = np.stack([aggregate(inputs[name.format(i)]) for i in layers])
    return scores | expert_scores(model, calibration, names)


def expert_scores(model: PreTrainedModel, calibration: Tensor, names: Names) -> dict[Axis, Grid]:
    """√Σ over the tokens of an expert of a²: (L, E, I) for each neuron, (L, E) for all together."""
    if names.experts is None or names.expert is None:
        return {}
    squares = []
    for layer in range(model.config.num_hidden_layers):
        experts = model.base_model.get_submodule(names.experts.format(layer))
        calls = routed(model, calibration, experts)
        rows = []
        for number in range(experts.num_experts):  # type: ignore[arg-type]
            read = [
                names.expert(states[(chosen == number).any(-1)], number, experts) for states, chosen in calls
            ]
            rows.append((torch.cat(read).double().numpy() ** 2).sum(0))
        squares.append(np.stack(rows))
    total = np.stack(squares)
    return {Axis.EXPERT_MLP: np.sqrt(total), Axis.EXPERTS: np.sqrt(total.sum(-1))}


def routed(model: PreTrainedModel, calibration: Tensor, experts: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """For each block what a module of experts was given: (n, D) states and (n, k) chosen experts."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = experts.register_forward_pre_hook(lambda _, given: calls.append((given[0], given[1])))
    with torch.no_grad():
        for block in calibration:
            model.base_model(input_ids=block[None].long(), use_cache=False)
    hook.remove()
    return calls


def gated(states: Tensor, number: int, experts: Any) -> Tensor:
    """Gate and up in one matrix, one after the other: Mixtral, Qwen."""
    gate, up = (states @ experts.gate_up_proj[number].detach().T).chunk(2, -1)
    read: Tensor = nn.functional.silu(gate) * up
    return read


def clamped(states: Tensor, number: int, experts: Any) -> Tensor:
    """GPT-OSS: gate and up alternate, both are clamped, and one is added to the up."""
    both = states @ experts.gate_up_proj[number].detach() + experts.gate_up_proj_bias[number].detach()
    gate, up = both[..., ::2].clamp(max=7), both[..., 1::2].clamp(-7, 7)
    read: Tensor = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    return read


def recorded(model: PreTrainedModel, calibration: Tensor) -> tuple[dict[str, Grid], dict[str, Grid]]:
    """(N, T, units) inputs and outputs of every module of the decoder, in float64."""
    inputs: dict[str, list[Grid]] = defaultdict(list)
    outputs: dict[str, list[Grid]] = defaultdict(list)

    def record(name: str, _: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            inputs[name].append(of_block(arguments[0]))
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor):
            outputs[name].append(of_block(output))

    def of_block(values: Tensor) -> Grid:
        """(1, T, units), also where a class drops the dimension of the batch."""
        return (values if values.ndim == 3 else values[None]).double().numpy()

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


def along(values: Grid, kind: str, place: int) -> Grid:
    """Mean, L2 norm or variance of absolute values along a dimension, by the formulas of the paper."""
    values = np.abs(values)
    match kind:
        case "mean":
            return np.asarray(values.sum(place) / values.shape[place])
        case "l2":
            return np.asarray(np.sqrt((values**2).sum(place)))
        case "var":
            mean = values.sum(place, keepdims=True) / values.shape[place]
            return np.asarray(((values - mean) ** 2).sum(place) / values.shape[place])
    raise ValueError(kind)


def aggregated(values: Grid, batch: str, sequence: str) -> Grid:
    """(units,) of (N, T, units): first along the sequence, then along the batch."""
    return along(along(values, sequence, 1), batch, 0)


def influence(before: Grid, after: Grid) -> float:
    """1 − mean over all tokens of the cosine between a layer's input and output."""
    dots = (before * after).sum(-1)
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(1 - (dots / lengths).mean())
