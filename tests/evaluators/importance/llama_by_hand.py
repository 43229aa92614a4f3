"""Iterative importance of Llamas, written out by hand: students are sliced by their modules' own names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from space.axes.architecture import Architecture, Axis
from tests.evaluators.importance.reference import reference_scores


@dataclass(frozen=True)
class Left:
    """The teacher's units that a student has, in no order of importance."""

    hidden: list[int]
    layers: list[int]
    mlp: dict[int, list[int]]
    groups: dict[int, list[int]]
    heads: dict[tuple[int, int], list[int]]
    """By layer and group; numbers within the group."""


def all_of(teacher: Architecture) -> Left:
    """Every unit."""
    layers, each = range(teacher.layers), teacher.heads // teacher.kv_heads
    return Left(
        list(range(teacher.hidden)),
        list(layers),
        {layer: list(range(teacher.mlp)) for layer in layers},
        {layer: list(range(teacher.kv_heads)) for layer in layers},
        {(layer, group): list(range(each)) for layer in layers for group in range(teacher.kv_heads)},
    )


@torch.no_grad()
def student(model: PreTrainedModel, left: Left, head_dim: int) -> PreTrainedModel:
    """A Llama of these units alone, in the teacher's order."""
    first = left.layers[0]
    config = copy.deepcopy(model.config)
    config.hidden_size, config.num_hidden_layers = len(left.hidden), len(left.layers)
    config.intermediate_size = len(left.mlp[first])
    config.num_key_value_heads = len(left.groups[first])
    config.num_attention_heads = sum(len(left.heads[first, group]) for group in left.groups[first])
    config.layer_types = None
    small: Any = AutoModelForCausalLM.from_config(config)
    whole: Any = model
    each = whole.config.num_attention_heads // whole.config.num_key_value_heads
    small.model.embed_tokens.weight.copy_(whole.model.embed_tokens.weight[:, left.hidden])
    small.lm_head.weight.copy_(whole.lm_head.weight[:, left.hidden])
    small.model.norm.weight.copy_(whole.model.norm.weight[left.hidden])
    for place, layer in enumerate(left.layers):
        new, old = small.model.layers[place], whole.model.layers[layer]
        groups = left.groups[layer]
        heads = [group * each + head for group in groups for head in left.heads[layer, group]]
        queries, keys = _rows(heads, head_dim), _rows(groups, head_dim)
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            weight = getattr(old.self_attn, name).weight
            getattr(new.self_attn, name).weight.copy_(weight[rows][:, left.hidden])
        new.self_attn.o_proj.weight.copy_(old.self_attn.o_proj.weight[left.hidden][:, queries])
        for name in ("gate_proj", "up_proj"):
            weight = getattr(old.mlp, name).weight
            getattr(new.mlp, name).weight.copy_(weight[left.mlp[layer]][:, left.hidden])
        new.mlp.down_proj.weight.copy_(old.mlp.down_proj.weight[left.hidden][:, left.mlp[layer]])
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(new, name).weight.copy_(getattr(old, name).weight[left.hidden])
    made: PreTrainedModel = small.eval()
    return made


def _rows(units: Sequence[int], size: int) -> list[int]:
    return [unit * size + entry for unit in units for entry in range(size)]


@dataclass(frozen=True)
class Falling:
    """For each row of units the order in which they are kept, best first, made round by round."""

    left: Left
    hidden: list[int]
    layers: list[int]
    mlp: dict[int, list[int]]
    groups: dict[int, list[int]]
    heads: dict[tuple[int, int], list[int]]


def falling(
    model: PreTrainedModel, calibration: Tensor, head_dim: int, sizes: Sequence[Architecture]
) -> Falling:
    """The orders after scoring the teacher, and then a student of each of the sizes."""
    teacher = Architecture(
        model.config.hidden_size,
        model.config.intermediate_size,
        model.config.num_attention_heads,
        model.config.num_key_value_heads,
        model.config.num_hidden_layers,
    )
    left = all_of(teacher)
    found = Falling(left, left.hidden, left.layers, dict(left.mlp), dict(left.groups), dict(left.heads))
    for number in range(len(sizes) + 1):
        scores = reference_scores(student(model, left, head_dim), calibration)
        found = _scored(found, left, scores)
        if number < len(sizes):
            left = _cut(found, left, sizes[number])
    return replace(found, left=left)


def _scored(found: Falling, left: Left, scores: dict[Axis, Any]) -> Falling:
    mlp, groups, heads = dict(found.mlp), dict(found.groups), dict(found.heads)
    for place, layer in enumerate(left.layers):
        mlp[layer] = _ahead(left.mlp[layer], scores[Axis.MLP][place], mlp[layer])
        row, sums = list(scores[Axis.HEADS][place]), []
        for group in left.groups[layer]:
            inside = left.heads[layer, group]
            mine, row = row[: len(inside)], row[len(inside) :]
            heads[layer, group] = _ahead(inside, mine, heads[layer, group])
            sums.append(sum(mine))
        groups[layer] = _ahead(left.groups[layer], sums, groups[layer])
    return Falling(
        left,
        _ahead(left.hidden, scores[Axis.HIDDEN], found.hidden),
        _ahead(left.layers, scores[Axis.LAYERS], found.layers),
        mlp,
        groups,
        heads,
    )


def _ahead(units: list[int], scores: Sequence[float], order: list[int]) -> list[int]:
    """Those that were scored by their scores, then the others as they were."""
    best = [unit for _, unit in sorted(zip(scores, units, strict=True), key=lambda pair: -pair[0])]
    return best + [unit for unit in order if unit not in units]


def _cut(found: Falling, left: Left, sizes: Architecture) -> Left:
    each = sizes.heads // sizes.kv_heads
    layers = sorted(found.layers[: sizes.layers])
    return Left(
        sorted(found.hidden[: sizes.hidden]),
        layers,
        {layer: sorted(found.mlp[layer][: sizes.mlp]) for layer in layers},
        {layer: sorted(found.groups[layer][: sizes.kv_heads]) for layer in layers},
        {
            (layer, group): sorted(found.heads[layer, group][:each])
            for layer in layers
            for group in found.groups[layer][: sizes.kv_heads]
        },
    )
