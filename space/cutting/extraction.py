"""Extraction of students: the teacher is sorted by importance once; students are prefixes of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import (
    AxisMap,
    MappedTensor,
    ResidualStream,
    compensate_scales,
    student_name,
    wildcard_name,
)
from space.axes.config_fields import with_sizes
from space.axes.layers import check_layer_signatures, layer_signatures, module_scalars, per_layer_fields
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit, kept_units, positions, prefix
from space.cutting.basis import Basis, NormFolding, root_mean, rotated
from space.cutting.ranking import Ranking, kept_layers
from space.cutting.repair import Repair
from space.input_error import InputError

Weights = Mapping[str, Tensor]
_NOTHING = Repair()


def saved_tensors(model: PreTrainedModel, axis_map: AxisMap) -> dict[str, Tensor]:
    """Return the tensors of a built teacher that are in the map, by name: parameters and saved buffers."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {tensor.name: tensors[tensor.name] for tensor in axis_map.tensors}


def sort_by_importance(weights: Weights, axis_map: AxisMap, ranking: Ranking) -> dict[str, Tensor]:
    """Return the canonical teacher: the same function, hidden (sorted or rotated) and inner axes sorted.

    Args:
        weights: the teacher's, by name, from ``saved_tensors``.
        axis_map: the teacher's.
        ranking: the teacher's.

    Returns:
        New tensors by name; the order of layers is unchanged.
    """
    return {tensor.name: values for tensor, values in sorted_tensors(weights, axis_map, ranking)}


def sorted_tensors(
    weights: Weights, axis_map: AxisMap, ranking: Ranking
) -> Iterator[tuple[MappedTensor, Tensor]]:
    """Yield the tensors of ``sort_by_importance`` one by one; each has the shape and dtype of the teacher's.

    Only one tensor is made at a time, so a caller that writes them away needs no room for a second teacher.
    """
    stream, basis, sortable = axis_map.stream, ranking.basis, axis_map.sortable
    folding = None
    if basis is not None:
        assert stream is not None, "only a stream that can be turned has a basis"
        folding = NormFolding(weights, axis_map, stream)
        sortable -= {Axis.HIDDEN}
    for tensor in axis_map.tensors:
        values = weights[tensor.name].detach()
        if basis is not None and folding is not None and stream is not None:
            values = _turned(folding, tensor, stream, basis).to(values)
        yield tensor, _sorted(values, tensor, sortable, ranking)


def _turned(folding: NormFolding, tensor: MappedTensor, stream: ResidualStream, basis: Basis) -> Tensor:
    """Return a tensor in a basis; norms that cannot be folded have their gains along its directions."""
    if (norm := basis.norms.get(tensor.name)) is not None:
        return norm.gain - stream.offset
    return rotated(folding.folded(tensor).detach(), tensor, stream, basis.rotation)


def _sorted(values: Tensor, tensor: MappedTensor, sortable: Collection[Axis], ranking: Ranking) -> Tensor:
    """Return a tensor with its units in the ranking's order along every dimension."""

    def order(axis: Axis, within: int | None) -> Tensor:
        if axis in sortable:
            return ranking.order(axis, tensor.layer, within)
        units = ranking.order(axis, tensor.layer, within)
        return torch.arange(len(units))

    experts = next((dim for dim, axes in enumerate(tensor.axes) if Axis.EXPERTS in axes), None)
    # Each expert has its own order of neurons, so neurons are sorted before the experts are.
    for dim, layout in sorted(enumerate(tensor.dimensions), key=lambda at: at[0] == experts):
        axes = tensor.axes[dim] - {Axis.LAYERS}
        if Axis.EXPERT_MLP in axes and experts not in (None, dim):
            values = torch.cat(
                [
                    one.index_select(dim, positions(layout, order, expert).to(one.device))
                    for expert, one in enumerate(values.split(1, experts))
                ],
                experts,
            )
        elif axes & frozenset(sortable):
            values = values.index_select(dim, positions(layout, order).to(values.device))
    return values.clone()


def stream_columns(axis_map: AxisMap, ranking: Ranking, hidden: int) -> Callable[[Tensor], Tensor]:
    """Return how what writes into a student's stream is cut from what writes into the teacher's.

    Args:
        axis_map: the teacher's.
        ranking: the teacher's.
        hidden: D', the student's hidden size.

    Returns:
        A function from (…, D) to (…, D'): the coordinates that are kept, or those of the basis.
    """
    if ranking.basis is not None:
        directions = ranking.basis.rotation[:, :hidden]
        return lambda values: values.to(directions.dtype) @ directions
    whole = axis_map.teacher.hidden
    order = ranking.order(Axis.HIDDEN, None) if Axis.HIDDEN in axis_map.sortable else torch.arange(whole)
    return lambda values: values[..., order[:hidden]]


def layers_kept(axis_map: AxisMap, ranking: Ranking, architecture: Architecture) -> list[int]:
    """Return the teacher's layers that a student keeps, ascending."""
    return kept_layers(ranking.scores[Axis.LAYERS], architecture.layers, axis_map.kinds, ranking.blocks)


def student_config(axis_map: AxisMap, architecture: Architecture, kept: Sequence[int]) -> PretrainedConfig:
    """Return the config of a student, validated by the class's own config object.

    Args:
        axis_map: the teacher's.
        architecture: the student's sizes.
        kept: the teacher's layers that the student keeps.

    Raises:
        StrictDataclassError: the class does not allow these sizes together; some classes raise
            ValueError or a similar error instead.
    """
    changes = per_layer_fields(axis_map.config, axis_map.teacher.layers, kept)
    changes |= {name: architecture[axis] for axis, names in axis_map.fields.items() for name in names}
    changes |= axis_map.scales.fields(axis_map, architecture)
    return with_sizes(axis_map.config, changes)


def extract(
    canonical: Weights,
    axis_map: AxisMap,
    ranking: Ranking,
    architecture: Architecture,
    kept: Sequence[int] | None = None,
    repair: Repair = _NOTHING,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Build a student: the prefix of every axis, and the most important layers.

    Args:
        canonical: from ``sort_by_importance``.
        axis_map: the teacher's.
        ranking: the ranking that ``canonical`` was sorted by.
        architecture: the student's sizes.
        kept: the teacher's layers to keep, ascending; by default the most important ones.
        repair: how to repair the weights for what is cut; nothing by default.
        device: where the student is cut and lies; by default where ``canonical`` lies.

    Returns:
        A model with its own memory, in evaluation mode.

    Raises:
        InputError: the class cannot express a model of just these layers, or needs other tensors.
    """
    kept = layers_kept(axis_map, ranking, architecture) if kept is None else kept
    with torch.no_grad():
        weights = student_weights(canonical, axis_map, ranking, architecture, kept, repair, device, copy=True)
    student = model_from_weights(student_config(axis_map, architecture, kept), weights)
    found = layer_signatures(module_scalars(student), axis_map.stacks, len(kept))
    check_layer_signatures(axis_map.layer_signatures, found, kept)
    return student


def student_weights(
    canonical: Weights,
    axis_map: AxisMap,
    ranking: Ranking,
    architecture: Architecture,
    kept: Sequence[int],
    repair: Repair = _NOTHING,
    device: torch.device | None = None,
    *,
    copy: bool = False,
) -> dict[str, Tensor]:
    """Return the weights of a student, by its own names; gradients flow to ``canonical``.

    Unless they are copied, they are views of ``canonical`` wherever its entries are the student's.

    Args:
        canonical: from ``sort_by_importance``, or what became of it in training.
        axis_map: the teacher's.
        ranking: the ranking that ``canonical`` was sorted by.
        architecture: the student's sizes.
        kept: the teacher's layers to keep, ascending.
        repair: how to repair the weights for what is cut; nothing by default.
        device: where the student is cut; by default where ``canonical`` lies.
        copy: whether every tensor has its own memory.
    """
    assert ranking.basis is not None or not repair.sets_gains, "moments sorted by a turned ranking"
    weights = {}
    for tensor in axis_map.tensors:
        name = student_name(tensor, axis_map, kept)
        if name is not None:
            # Whole tensors move: repairs need them, and an accelerator slices faster than its host.
            whole = canonical[tensor.name].to(device)
            values = repair.repaired(whole, tensor, axis_map, architecture)
            values = slice_tensor(values, tensor, axis_map, architecture, kept)
            gain = _norm_gain(tensor, axis_map, ranking.basis, architecture.hidden, repair, whole.device)
            values = values if gain is None else _times(values, gain, axis_map.stream)
            weights[name] = _copied(values, whole) if copy else values
    compensate_scales(weights, axis_map, architecture)
    return weights


def _copied(values: Tensor, whole: Tensor) -> Tensor:
    """Return a contiguous tensor that shares no memory with the one that it was cut from."""
    if values.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
        return values.clone(memory_format=torch.contiguous_format)
    return values.contiguous()


def _norm_gain(
    tensor: MappedTensor,
    axis_map: AxisMap,
    basis: Basis | None,
    hidden: int,
    repair: Repair,
    device: torch.device,
) -> float | None:
    """Return what a norm of a turned stream is multiplied by, as it divides by the size of fewer directions.

    None for all other tensors.
    """
    if basis is None or axis_map.stream is None:
        return None
    if (norm := basis.norms.get(tensor.name)) is not None:
        return root_mean(norm.energy, hidden)
    if wildcard_name(tensor.name) not in axis_map.stream.readers:
        return None
    if not repair.sets_gains:
        return basis.gain(hidden)
    return repair.norm_gain(tensor.name, hidden, device) if hidden < axis_map.teacher.hidden else None


def _times(values: Tensor, gain: float, stream: ResidualStream | None) -> Tensor:
    """Multiply what a norm's weight and offset come to."""
    assert stream is not None, "only a stream that can be turned has a basis"
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    return ((exact + stream.offset) * gain - stream.offset).to(values.dtype)


def slice_tensor(
    values: Tensor,
    tensor: MappedTensor,
    axis_map: AxisMap,
    architecture: Architecture,
    kept: Sequence[int],
) -> Tensor:
    """Return the leading units along every dimension of a sorted tensor, and the kept layers.

    It is a view where possible.
    """
    for dim, layout in enumerate(tensor.dimensions):
        if Axis.LAYERS in tensor.axes[dim]:
            index = positions(layout, lambda axis, within: torch.tensor(kept))
            values = values.index_select(dim, index.to(values.device))
        elif tensor.axes[dim]:
            values = prefix(values, dim, layout, architecture, axis_map.teacher)
    return values


def model_from_weights(config: PretrainedConfig, weights: Weights) -> PreTrainedModel:
    """Build a model from weights, without random initialisation; tied weights are tied.

    Raises:
        InputError: the class needs weights that are not given.
    """
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise InputError(
            "A student is made of the teacher's tensors alone",
            f"the class then wants {wildcard_name(missing[0])}, which the teacher does not have there",
            "Choose another teacher with --model, or keep its layers with --keep layers",
        )
    nn.Module.to(model, next(iter(weights.values())).device)
    model.eval()
    return model


def student_map(axis_map: AxisMap, architecture: Architecture, layers: Sequence[int]) -> AxisMap:
    """Return the axis map of a student, so that it can be ranked and cut like a teacher.

    Args:
        axis_map: the teacher's.
        architecture: the student's sizes.
        layers: the teacher's layers that the student keeps, ascending.

    Raises:
        StrictDataclassError: the class does not allow these sizes together; some classes raise
            ValueError or a similar error instead.
    """
    names = {tensor.name: student_name(tensor, axis_map, layers) for tensor in axis_map.tensors}
    tensors = tuple(
        MappedTensor(
            name,
            tuple(_shrunk(layout, architecture, axis_map.teacher) for layout in tensor.dimensions),
            None if tensor.layer is None else layers.index(tensor.layer),
        )
        for tensor in axis_map.tensors
        if (name := names[tensor.name]) is not None
    )
    kinds = [axis_map.kinds[layer] for layer in layers]
    signatures = axis_map.layer_signatures
    return replace(
        axis_map,
        config=student_config(axis_map, architecture, layers),
        teacher=architecture,
        head_dim=architecture.head_dim or axis_map.head_dim,
        tensors=tensors,
        kinds=tuple(list(dict.fromkeys(kinds)).index(kind) for kind in kinds),
        buffers=frozenset(name for before in axis_map.buffers if (name := names[before])),
        layer_signatures=tuple(signatures[layer] for layer in layers) if signatures else (),
    )


def _shrunk(layout: Layout, student: Architecture, teacher: Architecture) -> Layout:
    match layout:
        case Fixed():
            return layout
        case Concatenated(parts):
            return Concatenated(tuple(_shrunk(part, student, teacher) for part in parts))
        case PerUnit(axis, units, inner):
            return PerUnit(axis, kept_units(axis, units, student, teacher), _shrunk(inner, student, teacher))
