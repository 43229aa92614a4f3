"""Importance by weights and by their gradients, entry by entry, for classes whose modules are named by hand.

Nothing of the axis map is used. Each class lists which part of which parameter belongs to which unit; hidden
is every dimension of a length that nothing else has, or listed too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from tests.evaluators.importance.reference import Grid

Index = int | slice | tuple[int | slice, ...]
#: The layer, and the unit's number; for the neuron of an expert also its own.
Unit = tuple[int, ...]
_ALL = slice(None)


class Piece(NamedTuple):
    """Part of a parameter, and how much of it counts for a unit."""

    axis: Axis
    unit: Unit
    name: str
    at: Index
    share: float = 1.0


def row(unit: int, length: int) -> slice:
    return slice(unit * length, (unit + 1) * length)


def by_length(model: PreTrainedModel) -> Iterator[Piece]:
    """Hidden, of a model in which nothing else is as long."""
    hidden = model.config.hidden_size
    for name, parameter in model.named_parameters():
        places = [place for place, length in enumerate(parameter.shape) if length == hidden]
        assert len(places) < 2
        for unit in range(hidden if places else 0):
            yield Piece(Axis.HIDDEN, (unit,), name, (*[_ALL] * places[0], unit))


def grouped_heads(model: PreTrainedModel) -> Iterator[Piece]:
    """Heads whose keys and values are shared: a head has its part of those of its group."""
    config: Any = model.config
    heads, groups, length = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}.self_attn"
        for head in range(heads):
            unit = (layer, head)
            of_group = row(head * groups // heads, length)
            for kind in ("weight", "bias"):
                yield Piece(Axis.HEADS, unit, f"{at}.q_proj.{kind}", row(head, length))
                for name in ("k_proj", "v_proj"):
                    yield Piece(Axis.HEADS, unit, f"{at}.{name}.{kind}", of_group, groups / heads)
            yield Piece(Axis.HEADS, unit, f"{at}.o_proj.weight", (_ALL, row(head, length)))
            yield Piece(Axis.HEADS, unit, f"{at}.sinks", head)


def neurons(model: PreTrainedModel, module: str = "mlp") -> Iterator[Piece]:
    for layer in range(model.config.num_hidden_layers):
        for unit in range(model.config.intermediate_size):
            at = f"model.layers.{layer}.{module}"
            yield Piece(Axis.MLP, (layer, unit), f"{at}.gate_proj.weight", unit)
            yield Piece(Axis.MLP, (layer, unit), f"{at}.up_proj.weight", unit)
            yield Piece(Axis.MLP, (layer, unit), f"{at}.down_proj.weight", (_ALL, unit))


def experts(
    model: PreTrainedModel, router: str, neuron: Callable[[int, int], dict[str, Index]]
) -> Iterator[Piece]:
    """Experts of a class with one tensor for all of them.

    Args:
        model: of the class.
        router: module within the MLP.
        neuron: of a neuron's number and how many there are, where it lies within an expert's part.
    """
    config: Any = model.config
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}.mlp"
        for expert in range(config.num_local_experts):
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"):
                yield Piece(Axis.EXPERTS, (layer, expert), f"{at}.experts.{name}", expert)
            for kind in ("weight", "bias"):
                yield Piece(Axis.EXPERTS, (layer, expert), f"{at}.{router}.{kind}", expert)
            for unit in range(config.intermediate_size):
                for name, index in neuron(unit, config.intermediate_size).items():
                    inside = index if isinstance(index, tuple) else (index,)
                    name = f"{at}.experts.{name.split()[0]}"
                    yield Piece(Axis.EXPERT_MLP, (layer, expert, unit), name, (expert, *inside))


def gpt2(model: PreTrainedModel) -> Iterator[Piece]:
    """Transposed matrices, queries, keys and values in one, and as many of them as of hidden."""
    config: Any = model.config
    length = config.n_embd // config.n_head
    for unit in range(config.n_embd):
        of = Axis.HIDDEN, (unit,)
        for name in ("wte.weight", "wpe.weight"):
            yield Piece(*of, f"transformer.{name}", (_ALL, unit))
        for name in ("ln_f.weight", "ln_f.bias"):
            yield Piece(*of, f"transformer.{name}", unit)
        for layer in range(config.n_layer):
            at = f"transformer.h.{layer}"
            for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.c_attn.weight"):
                yield Piece(*of, f"{at}.{name}", unit)
            for name in ("attn.c_proj.bias", "mlp.c_fc.weight", "mlp.c_proj.bias"):
                yield Piece(*of, f"{at}.{name}", unit)
            for name in ("attn.c_proj.weight", "mlp.c_proj.weight"):
                yield Piece(*of, f"{at}.{name}", (_ALL, unit))
    for layer in range(config.n_layer):
        at = f"transformer.h.{layer}"
        for head in range(config.n_head):
            for part in range(3):
                entries = row(part * config.n_head + head, length)
                yield Piece(Axis.HEADS, (layer, head), f"{at}.attn.c_attn.weight", (_ALL, entries))
                yield Piece(Axis.HEADS, (layer, head), f"{at}.attn.c_attn.bias", entries)
            yield Piece(Axis.HEADS, (layer, head), f"{at}.attn.c_proj.weight", row(head, length))
        for unit in range(config.n_inner):
            yield Piece(Axis.MLP, (layer, unit), f"{at}.mlp.c_fc.weight", (_ALL, unit))
            yield Piece(Axis.MLP, (layer, unit), f"{at}.mlp.c_fc.bias", unit)
            yield Piece(Axis.MLP, (layer, unit), f"{at}.mlp.c_proj.weight", unit)


def llama_like(model: PreTrainedModel) -> Iterator[Piece]:
    yield from by_length(model)
    yield from grouped_heads(model)
    yield from neurons(model)


def falcon_h1(model: PreTrainedModel) -> Iterator[Piece]:
    """A hybrid: attention beside a state space in every layer."""
    yield from by_length(model)
    yield from grouped_heads(model)
    yield from neurons(model, "feed_forward")


def mixtral(model: PreTrainedModel) -> Iterator[Piece]:
    def neuron(unit: int, units: int) -> dict[str, Index]:
        return {
            "gate_up_proj gate": unit,
            "gate_up_proj up": units + unit,
            "down_proj": (_ALL, unit),
        }

    yield from by_length(model)
    yield from grouped_heads(model)
    yield from experts(model, "gate", neuron)


def gpt_oss(model: PreTrainedModel) -> Iterator[Piece]:
    """Gates and ups alternate, all with biases, matrices transposed."""

    def neuron(unit: int, units: int) -> dict[str, Index]:
        return {
            "gate_up_proj": (_ALL, row(unit, 2)),
            "gate_up_proj_bias": row(unit, 2),
            "down_proj": unit,
        }

    yield from by_length(model)
    yield from grouped_heads(model)
    yield from experts(model, "router", neuron)


PIECES: Mapping[str, Callable[[PreTrainedModel], Iterator[Piece]]] = {
    "qwen3": llama_like,
    "gpt2": gpt2,
    "mixtral": mixtral,
    "gpt_oss": gpt_oss,
    "falcon_h1": falcon_h1,
}


def sums(model: PreTrainedModel, values: Mapping[str, Tensor]) -> dict[Axis, Grid]:
    """The sum over all entries of each unit, (D,), (L, units) or (L, E, I).

    Args:
        model: of a class in ``PIECES``.
        values: one number an entry, by parameter.
    """
    found: dict[Axis, dict[Unit, float]] = defaultdict(lambda: defaultdict(float))
    for piece in PIECES[model.config.model_type](model):
        if piece.name in values:
            entries = values[piece.name].double()[piece.at]
            found[piece.axis][piece.unit] += piece.share * float(entries.sum())
    grids = {}
    for axis, units in found.items():
        grid = np.zeros([1 + max(numbers) for numbers in zip(*units, strict=True)])
        for unit, value in units.items():
            grid[unit] = value
        grids[axis] = grid
    return grids


def magnitudes(model: PreTrainedModel) -> dict[Axis, Grid]:
    """√Σw²."""
    squares = {name: parameter.detach() ** 2 for name, parameter in model.named_parameters()}
    return {axis: np.sqrt(grid) for axis, grid in sums(model, squares).items()}


def taylor(model: PreTrainedModel, calibration: Tensor) -> dict[Axis, Grid]:
    """Mean over blocks of (Σ g·w)², with the gradients of each block's loss from its whole logits."""
    total: dict[Axis, Grid] = {}
    for block in calibration.long():
        logits = model(input_ids=block[None], use_cache=False).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, block[1:])
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        products = {
            name: parameter.detach().double() * gradient.double()
            for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
        }
        for axis, grid in sums(model, products).items():
            total[axis] = total.get(axis, 0) + grid**2 / len(calibration)
    return total
