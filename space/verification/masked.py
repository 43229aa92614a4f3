"""The masked teacher: a full-size model that computes the logits which a student must have.

Every unit that the student lacks is masked in place: its weights are zero, routers never choose a dropped
expert, dropped layers return their input, and norms use the kept dimensions alone, so they divide by the
student's size. The kept units are those with the highest scores. As an independent check, this module shares
nothing with ``space.cutting.extraction`` except the ranking and the axis map that is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit
from space.cutting.ranking import Ranking

#: The router logit of a dropped expert.
_DROPPED_EXPERT = -1e9
Unit = tuple[Axis, int, int]
"""An axis, the number of a unit, and that of the unit which contains it (0 if none does)."""


def top_places(scores: Sequence[float], count: int) -> set[int]:
    """Return the indices of the ``count`` highest scores; of equal scores the earlier one is better."""
    return set(sorted(range(len(scores)), key=lambda place: -scores[place])[:count])


class KeptUnits:
    """The units that a student keeps, by the ranking."""

    def __init__(self, ranking: Ranking, student: Architecture, teacher: Architecture) -> None:
        self.ranking, self.student, self.teacher = ranking, student, teacher
        self.sets: dict[tuple[Axis, int | None, int], set[int]] = {}
        self.masks: dict[tuple[Layout, int | None, bool], Tensor] = {}
        """Of dimensions: their layout, the layer, and whether neurons of experts are masked there."""

    def __call__(self, unit: Unit, layer: int | None) -> bool:
        """Whether a unit (in ``layer``, or None for hidden) is kept."""
        axis, number, parent = unit
        key = axis, layer, parent
        if key not in self.sets:
            self.sets[key] = self._set(*key)
        return number in self.sets[key]

    def _set(self, axis: Axis, layer: int | None, parent: int) -> set[int]:
        scores = self.ranking.scores
        if axis is Axis.HIDDEN:
            return top_places(scores[axis].tolist(), self.student.hidden)
        assert layer is not None
        if axis in (Axis.HEADS, Axis.KV_HEADS):
            heads = scores[Axis.HEADS][layer].tolist()
            size = len(heads) // self.teacher.kv_heads
            groups = [heads[first : first + size] for first in range(0, len(heads), size)]
            if axis is Axis.KV_HEADS:
                return top_places([sum(group) for group in groups], self.student.kv_heads)
            return top_places(groups[parent], self.student.heads // self.student.kv_heads)
        row = scores[axis][layer].tolist()
        if axis is Axis.EXPERTS:
            size = len(row) // self.ranking.expert_groups
            row = row[parent * size : (parent + 1) * size]
            return top_places(row, self.student.experts // self.ranking.expert_groups)
        return top_places(row[parent] if axis is Axis.EXPERT_MLP else row, self.student[axis])


def entries(layout: Layout, parent: int = 0) -> Iterator[tuple[Unit, ...]]:
    """Yield, for each entry of a dimension, the units that it belongs to."""
    match layout:
        case Fixed(length):
            yield from ((),) * length
        case Concatenated(parts):
            for part in parts:
                yield from entries(part, parent)
        case PerUnit(axis, units, inner):
            for unit in range(units):
                own = () if axis is None else ((axis, unit, parent),)
                for rest in entries(inner, unit):
                    yield own + rest


@contextmanager
def masked_teacher(
    teacher: PreTrainedModel,
    axis_map: AxisMap,
    ranking: Ranking,
    student: Architecture,
    layers: Sequence[int],
) -> Iterator[PreTrainedModel]:
    """Yield a masked copy of the teacher that computes the student's logits within the context.

    Args:
        teacher: a small teacher with random weights; it is not changed.
        axis_map: its map.
        ranking: the scores of all units.
        student: the architecture of the student.
        layers: the layers that the student keeps.
    """
    model = copy.deepcopy(teacher)
    kept = KeptUnits(ranking, student, axis_map.teacher)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    masks = {mapped.name: _masks(mapped, kept) for mapped in axis_map.tensors}
    routers: dict[int, Tensor] = {}
    with torch.no_grad():
        _restrict_norms(model, axis_map, masks)
        for mapped in axis_map.tensors:
            _mask(tensors[mapped.name], mapped, masks[mapped.name], kept, routers)
    stack = axis_map.stacks[0]
    for layer in set(range(axis_map.teacher.layers)) - set(layers):
        _skip_layer(model.get_submodule(f"{stack}{layer}"))
    with _MaskedRouting(routers):
        yield model


def _masks(mapped: MappedTensor, kept: KeptUnits) -> list[Tensor]:
    """Return a mask of kept entries for each dimension; neurons of single experts are masked separately.

    Whole layers are masked separately too.
    """
    masks = []
    for layout, axes in zip(mapped.dimensions, mapped.axes, strict=True):
        neurons = Axis.EXPERTS in axes
        key = layout, mapped.layer, neurons
        if key not in kept.masks:
            apart = {Axis.LAYERS} if neurons else {Axis.LAYERS, Axis.EXPERT_MLP}
            kept.masks[key] = torch.tensor(
                [
                    all(kept(unit, mapped.layer) for unit in units if unit[0] not in apart)
                    for units in entries(layout)
                ]
            )
        masks.append(kept.masks[key])
    return masks


def _mask(
    values: Tensor, mapped: MappedTensor, masks: list[Tensor], kept: KeptUnits, routers: dict[int, Tensor]
) -> None:
    experts = [place for place, axes in enumerate(mapped.axes) if Axis.EXPERTS in axes]
    routes = bool(experts) and not mapped.has(Axis.EXPERT_MLP)
    for place, mask in enumerate(masks):
        if place in experts and routes:
            if values.numel() == len(mask):
                values.view(-1)[~mask] = _DROPPED_EXPERT
            else:
                routers[values.untyped_storage().data_ptr()] = mask
        else:
            values.movedim(place, 0)[~mask] = 0
    for place, layout in enumerate(mapped.dimensions):
        if experts and place not in experts and Axis.EXPERT_MLP in mapped.axes[place]:
            for expert in range(values.shape[experts[0]]):
                mask = torch.tensor(
                    [all(kept((axis, n, expert), mapped.layer) for axis, n, _ in u) for u in entries(layout)]
                )
                one = values.select(experts[0], expert)
                one.movedim(place - (experts[0] < place), 0)[~mask] = 0


class _MaskedRouting(TorchFunctionMode):
    """Replace the logits of dropped experts in every product with a router's weights."""

    def __init__(self, routers: dict[int, Tensor]) -> None:
        super().__init__()
        self.routers = routers

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        name = getattr(function, "__name__", "")
        if self.routers and name in ("linear", "matmul", "__matmul__", "addmm", "mm"):
            for operand in (*arguments, *(keywords or {}).values()):
                if isinstance(operand, Tensor) and operand.ndim == 2:
                    mask = self.routers.get(operand.untyped_storage().data_ptr())
                    if mask is not None and result.shape[-1] == len(mask):
                        return result.masked_fill(~mask, _DROPPED_EXPERT)
        return result


def _skip_layer(layer: nn.Module) -> None:
    """Make a layer return its input."""

    def return_input(_: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        states = arguments[0] if arguments else keywords["hidden_states"]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    layer.register_forward_hook(return_input, with_kwargs=True)


def _restrict_norms(model: PreTrainedModel, axis_map: AxisMap, masks: dict[str, list[Tensor]]) -> None:
    """Make norms over a pruned axis use the kept entries alone, and divide by their number."""
    vectors: dict[str, Tensor] = {}
    for mapped in axis_map.tensors:
        if len(mapped.dimensions) == 1 and mapped.axes[0] - {Axis.EXPERTS}:
            vectors[mapped.module] = masks[mapped.name][0]
    hidden = masks[axis_map.roles.embedding][-1]
    for name, module in list(model.named_modules()):
        if "norm" not in type(module).__name__.lower() or any(True for _ in module.children()):
            continue
        if name not in vectors and any(True for _ in module.parameters()):
            continue
        _restrict(module, vectors.get(name, hidden))


def _restrict(norm: nn.Module, kept: Tensor) -> None:
    small: Any = copy.deepcopy(norm)
    for parameter in small.parameters():
        parameter.data = parameter.data[kept]
    if hasattr(small, "normalized_shape"):
        small.normalized_shape = (int(kept.sum()),)

    def forward(states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if states.shape[-1] != len(kept):
            plain: Tensor = type(norm).forward(norm, states, *arguments, **keywords)
            return plain
        whole = torch.zeros_like(states)
        whole[..., kept] = small(states[..., kept], *arguments, **keywords)
        return whole

    norm.forward = forward
