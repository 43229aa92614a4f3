"""The contract of extraction, tested on tiny random models.

A student's logits must equal those of its teacher with the dropped units masked.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap, build, wildcard_name
from space.counting.counting import expert_groups, fewest_experts
from space.cutting.extraction import extract, saved_tensors, sort_by_importance, student_config
from space.cutting.ranking import Ranking
from space.discovery.probing import refusal_reason
from space.input_error import InputError
from space.verification.masked import masked_teacher

_TRIES = 40
#: A norm that subtracts the mean turns a single number into 0, and such a student would prove nothing.
_LEAST_HIDDEN = 2


@torch.no_grad()
def random_teacher(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model in which all weights are random, those of norms and biases included."""
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
    """Switch off grouped kernels: they need sizes that are multiples of 16 bytes, unlike tiny experts."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def random_ranking(axis_map: AxisMap, seed: int, axes: Collection[Axis] | None = None) -> Ranking:
    """Return a ranking with random integer scores from 0 to 8, so that sums are exact and ties are frequent.

    Args:
        axis_map: the map of the ranked teacher.
        seed: the seed of the scores.
        axes: the axes to shuffle; the units of all others keep their order. None shuffles all.
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
    """Draw an architecture that the class allows, smaller along the given axes, and the layers it keeps.

    Return None if the class allows none of 40 draws.
    """
    for _ in range(_TRIES):
        architecture = _draw_architecture(axis_map, axes, rng)
        if architecture == axis_map.teacher:
            continue
        kept = sorted(rng.sample(range(axis_map.teacher.layers), architecture.layers))
        try:
            build(student_config(axis_map, architecture, kept))
        except BUILD_ERRORS:
            continue
        return architecture, kept
    return None


def _draw_architecture(axis_map: AxisMap, axes: Collection[Axis], rng: random.Random) -> Architecture:
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
    """Draw the heads: groups no larger than the teacher's. Where hidden is tied to heads, it follows."""
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


#: Between float32 logits of two ways to compute the same function, absolute and relative.
TOLERANCE = 1e-4
#: A larger difference is rounding if weights that are off by a rounding move logits half as far. Routers and
#: recurrences can be that sensitive; one that is no rounding is larger than this.
_MOST_ROUNDING = 1e-2
#: Logits that are all below this agree whatever is pruned, so they prove nothing.
_FLAT = 1e-3


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits (B, T, V), computed without a KV cache."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def contract_tokens(vocabulary: int) -> Tensor:
    """Return random token ids (2, 12), longer than any attention window of the small models."""
    return torch.randint(3, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest |one - other| / (1 + |other|); infinite if shapes differ or values prove nothing."""
    if one.shape != other.shape or not torch.isfinite(one).all() or float(other.abs().max()) < _FLAT:
        return float("inf")
    return float(((one - other).abs() / (1 + other.abs())).max())


def rounding(model: PreTrainedModel, tokens: Tensor, logits: Tensor) -> float:
    """Return how far a model's logits move if every weight is off by about one rounding.

    Args:
        model: a small model; it is not changed.
        tokens: (B, T) token ids.
        logits: (B, T, V), the model's.

    Returns:
        The largest ``distance`` of four draws.
    """
    found = []
    for seed in range(4):
        generator, moved = torch.Generator().manual_seed(seed), copy.deepcopy(model)
        for values in moved.parameters():
            noise = torch.randn(values.shape, generator=generator).to(values)
            values.data.mul_(1 + torch.finfo(values.dtype).eps * noise)
        found.append(distance(logits_of(moved, tokens), logits))
    return max(found)


def sorting_is_exact(model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], seed: int) -> bool:
    """Whether the model's logits stay the same when the given axes are put in a random order."""
    tokens = contract_tokens(model.config.get_text_config().vocab_size)
    sorted_model = copy.deepcopy(model)
    try:
        ranking = random_ranking(axis_map, seed, axes)
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    except BUILD_ERRORS:
        return False
    sorted_model.load_state_dict(canonical, strict=False)
    sorted_model.tie_weights()
    return distance(logits_of(sorted_model, tokens), logits_of(model, tokens)) < TOLERANCE


def contract_breach(
    model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], seed: int
) -> str | None:
    """Compare a random student that is pruned along the given axes with the masked teacher.

    Args:
        model: a small teacher with random weights.
        axis_map: its map.
        axes: the axes along which one random architecture is drawn.
        seed: the seed of architecture, layers and ranking.

    Returns:
        What is wrong, as text for the user; None if the student's logits are right.
    """
    drawn = random_architecture(axis_map, axes, random.Random(seed))
    if drawn is None:
        return "the class allows no smaller size that was tried"
    architecture, kept = drawn
    tokens = contract_tokens(model.config.get_text_config().vocab_size)
    refused = dict.fromkeys(set(axis_map.free) - set(axes), "not on trial") | dict(axis_map.refused)
    axis_map = replace(axis_map, refused=refused)
    ranking = random_ranking(axis_map, seed, axis_map.sortable | {Axis.LAYERS})
    try:
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
        student = extract(canonical, axis_map, ranking, architecture, kept)
        one_expert_at_a_time(student)
        logits = logits_of(student, tokens)
    except InputError as error:
        return error.values
    except BUILD_ERRORS as error:
        return _student_failure(error)
    try:
        with masked_teacher(model, axis_map, ranking, architecture, kept) as oracle:
            expected = logits_of(oracle, tokens)
    except BUILD_ERRORS as error:
        return f"there is nothing to compare students with ({refusal_reason(error)[:140]})"
    apart = distance(logits, expected)
    if apart < TOLERANCE or (apart < _MOST_ROUNDING and apart < 2 * rounding(student, tokens, logits)):
        return None
    return f"logits differ from the masked teacher's by {apart:.1g}"


def _student_failure(error: Exception) -> str:
    """Return why a student could not be built or run, as text for the user."""
    message = str(error)
    if mismatch := re.search(r"size mismatch for ([\w.]+)", message):
        return f"the class then makes {wildcard_name(mismatch[1])} of another shape"
    if isinstance(error, AssertionError):
        return f"it cannot be cut ({refusal_reason(error)[:140]})"
    return f"the student does not run ({type(error).__name__}: {refusal_reason(error)[:140]})"
