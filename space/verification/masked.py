"""The oracle: a teacher of its full size that computes what a student has to compute.

Every unit that the student lacks is switched off where it stands: its weights are zero, routers never
choose a dropped expert, dropped layers pass on what they get, and norms look at the kept dimensions
alone, so that they divide by the student's size. Which units are kept follows from the scores by the
plainest rule there is; nothing here is shared with the extraction but the map that is on trial.
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

#: What a router is made to think of an expert that is not there.
_NEVER = -1e9
Unit = tuple[Axis, int, int]
"""An axis, a unit of it, and the unit around it (0 if none)."""


def top_places(scores: Sequence[float], count: int) -> set[int]:
    """The places of the highest scores; of equal ones the earlier is better."""
    return set(sorted(range(len(scores)), key=lambda place: -scores[place])[:count])


class KeptUnits:
    """The units that a student has."""

    def __init__(self, ranking: Ranking, student: Architecture, teacher: Architecture) -> None:
        self.ranking, self.student, self.teacher = ranking, student, teacher
        self.sets: dict[tuple[Axis, int | None, int], set[int]] = {}

    def __call__(self, unit: Unit, layer: int | None) -> bool:
        """Whether a unit, of a layer if it lies in one, is kept."""
        axis, number, around = unit
        key = axis, layer, around
        if key not in self.sets:
            self.sets[key] = self._set(*key)
        return number in self.sets[key]

    def _set(self, axis: Axis, layer: int | None, around: int) -> set[int]:
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
            return top_places(groups[around], self.student.heads // self.student.kv_heads)
        row = scores[axis][layer].tolist()
        if axis is Axis.EXPERTS:
            size = len(row) // self.ranking.expert_groups
            row = row[around * size : (around + 1) * size]
            return top_places(row, self.student.experts // self.ranking.expert_groups)
        return top_places(row[around] if axis is Axis.EXPERT_MLP else row, self.student[axis])


def entries(layout: Layout, around: int = 0) -> Iterator[tuple[Unit, ...]]:
    """For each entry of a dimension, the units that it belongs to."""
    match layout:
        case Fixed(length):
            yield from ((),) * length
        case Concatenated(parts):
            for part in parts:
                yield from entries(part, around)
        case PerUnit(axis, units, inner):
            for unit in range(units):
                mine = () if axis is None else ((axis, unit, around),)
                for rest in entries(inner, unit):
                    yield mine + rest


@contextmanager
def masked_teacher(
    teacher: PreTrainedModel,
    axis_map: AxisMap,
    ranking: Ranking,
    student: Architecture,
    layers: Sequence[int],
) -> Iterator[PreTrainedModel]:
    """A copy of the teacher that computes what the student has to compute, within the context.

    Args:
        teacher: with real weights; stays as it is.
        axis_map: its map.
        ranking: which units are better.
        student: how many of each are kept.
        layers: the layers that are kept.
    """
    model = copy.deepcopy(teacher)
    kept = KeptUnits(ranking, student, axis_map.teacher)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    masks = {mapped.name: _masks(mapped, kept) for mapped in axis_map.tensors}
    routers: dict[int, Tensor] = {}
    with torch.no_grad():
        _restrict_norms(model, axis_map, masks)
        for mapped in axis_map.tensors:
            _switch_off(tensors[mapped.name], mapped, masks[mapped.name], kept, routers)
    stack = axis_map.stacks[0]
    for layer in set(range(axis_map.teacher.layers)) - set(layers):
        _pass_on(model.get_submodule(f"{stack}{layer}"))
    with _Routing(routers):
        yield model


def _masks(mapped: MappedTensor, kept: KeptUnits) -> list[Tensor]:
    """For each dimension which entries are kept, neurons of single experts apart."""
    return [
        torch.tensor(
            [
                all(kept(unit, mapped.layer) for unit in units if not _of_an_expert(unit, mapped, place))
                for units in entries(layout)
            ]
        )
        for place, layout in enumerate(mapped.dimensions)
    ]


def _of_an_expert(unit: Unit, mapped: MappedTensor, place: int) -> bool:
    """Whether the unit's expert is named by another dimension; layers are dropped as a whole."""
    return unit[0] is Axis.LAYERS or (unit[0] is Axis.EXPERT_MLP and Axis.EXPERTS not in mapped.axes[place])


def _switch_off(
    values: Tensor, mapped: MappedTensor, masks: list[Tensor], kept: KeptUnits, routers: dict[int, Tensor]
) -> None:
    experts = [place for place, axes in enumerate(mapped.axes) if Axis.EXPERTS in axes]
    routes = bool(experts) and not mapped.has(Axis.EXPERT_MLP)
    for place, mask in enumerate(masks):
        if place in experts and routes:
            if values.numel() == len(mask):
                values.view(-1)[~mask] = _NEVER
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


class _Routing(TorchFunctionMode):
    """Whatever a router's weights are multiplied with, dropped experts come out as never chosen."""

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
                        return result.masked_fill(~mask, _NEVER)
        return result


def _pass_on(layer: nn.Module) -> None:
    """Make a layer hand on what it gets."""

    def instead(_: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        states = arguments[0] if arguments else keywords["hidden_states"]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    layer.register_forward_hook(instead, with_kwargs=True)


def _restrict_norms(model: PreTrainedModel, axis_map: AxisMap, masks: dict[str, list[Tensor]]) -> None:
    """Norms over an axis that is cut see its kept entries alone, and divide by their number."""
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
