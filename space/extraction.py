"""From a teacher to its students: sorted once by importance, then cut as prefixes of every tensor."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from space.architecture import Architecture, Axis
from space.axis_map import AxisMap, Dimension, with_sizes
from space.axis_map import Tensor as MappedTensor
from space.ranking import Ranking

Weights = Mapping[str, Tensor]


def unit_order(axis: Axis, layer: int | None, ranking: Ranking) -> Tensor:
    """(units,) the teacher's units of an axis in the order of their importance."""
    if axis is Axis.HIDDEN:
        return ranking.hidden_order
    assert layer is not None, f"{axis} lies within the layers"
    if axis is Axis.HEADS:
        return ranking.head_order[layer].flatten()
    return {Axis.MLP: ranking.mlp_order, Axis.KV_HEADS: ranking.group_order}[axis][layer]


def sort_by_importance(weights: Weights, axis_map: AxisMap, ranking: Ranking) -> dict[str, Tensor]:
    """The canonical teacher: the same function, every axis inside the layers and hidden sorted.

    Args:
        weights: the teacher's, by parameter name.
        axis_map: the teacher's.
        ranking: the teacher's.

    Returns:
        New tensors by parameter name; layers stay where they are.
    """
    return {
        tensor.name: _sorted(weights[tensor.name].detach(), tensor, ranking) for tensor in axis_map.tensors
    }


def _sorted(values: Tensor, tensor: MappedTensor, ranking: Ranking) -> Tensor:
    for place, dimension in enumerate(tensor.dimensions):
        if dimension.axis is not None:
            order = unit_order(dimension.axis, tensor.layer, ranking).to(values.device)
            units = values.unflatten(place, (dimension.units, dimension.stride))
            values = units.index_select(place, order).flatten(place, place + 1)
    return values.clone()


def student_config(axis_map: AxisMap, architecture: Architecture, kept_layers: list[int]) -> PretrainedConfig:
    """The config of a student, made by the class's own config object.

    Raises:
        StrictDataclassError: the class does not allow these sizes together.
    """
    family = axis_map.family
    changes = {name: architecture[axis] for axis, name in family.fields.items()}
    per_layer = {
        name: [entries[layer] for layer in kept_layers]
        for name in family.per_layer
        if (entries := getattr(axis_map.config, name, None)) is not None
    }
    return with_sizes(axis_map.config, changes | per_layer)


def extract(
    canonical: Weights, axis_map: AxisMap, ranking: Ranking, architecture: Architecture
) -> PreTrainedModel:
    """Build a student: the prefix of every axis, and the most important layers.

    Args:
        canonical: from ``sort_by_importance``.
        axis_map: the teacher's.
        ranking: the one that ``canonical`` was sorted by.
        architecture: the student's sizes.

    Returns:
        A model with memory of its own, in evaluation mode, on the device of ``canonical``.
    """
    kept = ranking.kept_layers(architecture.layers)
    place_of = {layer: place for place, layer in enumerate(kept)}
    weights = {}
    for tensor in axis_map.tensors:
        if tensor.layer is None:
            name = tensor.name
        elif tensor.layer in place_of:
            rest = tensor.name.removeprefix(f"{axis_map.stack}{tensor.layer}")
            name = f"{axis_map.stack}{place_of[tensor.layer]}{rest}"
        else:
            continue
        weights[name] = prefix(canonical[tensor.name], tensor.dimensions, architecture, axis_map.teacher)
    return assemble(student_config(axis_map, architecture, kept), weights)


def prefix(
    values: Tensor, dimensions: tuple[Dimension, ...], student: Architecture, teacher: Architecture
) -> Tensor:
    """A copy of the leading units of every dimension; of heads, the leading ones of each leading group."""
    for place, dimension in enumerate(dimensions):
        if dimension.axis is Axis.HEADS:
            groups = values.unflatten(place, (teacher.kv_heads, -1, dimension.stride))
            each = student.heads // student.kv_heads
            kept = groups.narrow(place, 0, student.kv_heads).narrow(place + 1, 0, each)
            values = kept.flatten(place, place + 2)
        elif dimension.axis is not None:
            values = values.narrow(place, 0, student[dimension.axis] * dimension.stride)
    return values.clone(memory_format=torch.contiguous_format)


def assemble(config: PretrainedConfig, weights: Weights) -> PreTrainedModel:
    """A model of the given weights, without initialising others first; tied weights are tied."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not missing, f"no weights for {missing}"
    nn.Module.to(model, next(iter(weights.values())).device)
    model.eval()
    return model
