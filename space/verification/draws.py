"""What the contract is tried with: real weights, random rankings, random architectures."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, Refusal, build
from space.counting.experts import expert_groups, fewest_experts
from space.cutting.extraction import student_config
from space.cutting.ranking import Ranking

_TRIES = 40
#: What a norm centres has to be two numbers at least, or nothing is left of it and students prove nothing.
_LEAST_HIDDEN = 2


@torch.no_grad()
def random_teacher(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model in which no weight is what it is before training: not a norm's, not a bias's."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
        else:
            parameter.copy_(noise / 3 + (0 if name.endswith("bias") else 1))
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point() and buffer.ndim == 1:
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 10)
    model.eval()
    one_expert_at_a_time(model)
    return model


def one_expert_at_a_time(model: PreTrainedModel) -> None:
    """Grouped kernels want sizes that are multiples of 16 bytes; tiny experts are not."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def random_ranking(axis_map: AxisMap, seed: int, axes: Collection[Axis] | None = None) -> Ranking:
    """Scores among nine whole numbers, so that sums are exact and ties are many.

    Args:
        axis_map: of the teacher that is ranked.
        seed: of the scores.
        axes: those to shuffle; the units of all others stay in their order. None for all.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, layers = axis_map.teacher, axis_map.teacher.layers

    def scores(axis: Axis, *shape: int) -> Tensor:
        drawn = torch.randint(0, 9, shape, generator=generator).float()
        return drawn if axes is None or axis in axes else torch.zeros(shape)

    shapes = {Axis.HIDDEN: (teacher.hidden,), Axis.LAYERS: (layers,), Axis.HEADS: (layers, teacher.heads)}
    for axis in (Axis.MLP, Axis.SHARED_MLP, Axis.EXPERTS, Axis.HEAD_DIM):
        if teacher[axis]:
            shapes[axis] = (layers, teacher[axis])
    if teacher.expert_mlp:
        shapes[Axis.EXPERT_MLP] = (layers, teacher.experts, teacher.expert_mlp)
    return Ranking(
        {axis: scores(axis, *shape) for axis, shape in shapes.items()},
        teacher.kv_heads,
        "random",
        str(seed),
        expert_groups(axis_map),
    )


def random_architecture(
    axis_map: AxisMap, axes: Collection[Axis], rng: random.Random
) -> tuple[Architecture, list[int]] | None:
    """An architecture that the class allows, smaller along the given axes, and the layers it keeps.

    None if the class allows nothing that was drawn.
    """
    for _ in range(_TRIES):
        architecture = _drawn(axis_map, axes, rng)
        if architecture == axis_map.teacher:
            continue
        kept = sorted(rng.sample(range(axis_map.teacher.layers), architecture.layers))
        try:
            build(student_config(axis_map, architecture, kept))
        except Refusal:
            continue
        return architecture, kept
    return None


def _drawn(axis_map: AxisMap, axes: Collection[Axis], rng: random.Random) -> Architecture:
    teacher = axis_map.teacher
    sizes: dict[Axis, int] = {}
    factors = [coupling for coupling in axis_map.couplings if coupling.of in axes]
    for axis in axes:
        whole = teacher[axis]
        step = math.lcm(*(coupling.factor.denominator for coupling in factors if coupling.of is axis), 1)
        least = -(-_LEAST_HIDDEN // step) if axis is Axis.HIDDEN else 1
        sizes[axis] = step * rng.randint(least, whole // step)
    _draw_heads(axis_map, axes, rng, sizes)
    if Axis.EXPERTS in axes:
        groups = expert_groups(axis_map)
        least = -(-fewest_experts(axis_map) // groups)
        sizes[Axis.EXPERTS] = groups * rng.randint(least, teacher.experts // groups)
    return axis_map.complete(sizes)


def _draw_heads(
    axis_map: AxisMap, axes: Collection[Axis], rng: random.Random, sizes: dict[Axis, int]
) -> None:
    """Heads are groups of no more queries than the teacher's; where hidden is tied to them, it follows."""
    teacher = axis_map.teacher
    tied = {coupling.axis: coupling for coupling in axis_map.couplings}
    if Axis.KV_HEADS in tied or not {Axis.HEADS, Axis.KV_HEADS, Axis.HIDDEN} & set(axes):
        return
    with_hidden = tied.get(Axis.HEADS)
    group = teacher.heads // teacher.kv_heads
    free = Axis.HEADS in axes or (with_hidden is not None and Axis.HIDDEN in axes)
    heads = sizes.get(Axis.KV_HEADS, teacher.kv_heads) * (rng.randint(1, group) if free else group)
    if with_hidden is None:
        sizes[Axis.HEADS] = heads
    else:
        sizes[Axis.HIDDEN] = int(heads / with_hidden.factor)
