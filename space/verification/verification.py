"""Verify the axis map of a teacher on a tiny copy of it before the teacher is pruned.

The copy has tiny sizes, random weights and all flags of the teacher. On it, experiments find what shapes do
not show (``space.discovery`` leaves it open), and every axis is tested: a student's logits must equal those
of the teacher with the dropped units masked. An axis that fails is refused, with the reason.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, product

import torch
from transformers import PretrainedConfig, PreTrainedModel

from space.axes.architecture import Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap, Scales, layer_modules, wildcard_name
from space.axes.layout import Concatenated, axes_of
from space.cutting.basis import BasisName
from space.cutting.extraction import student_config
from space.discovery.discovery import Choices, Dimension, DraftMap, discover, map_from_probes, probe_sizes
from space.discovery.families import why_not_a_decoder
from space.discovery.probing import refusal_reason
from space.discovery.sizing import HiddenTie
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.behaviour import measure_scales, token_mixing_modules, with_stream
from space.verification.contract import (
    contract_breach,
    contract_tokens,
    random_architecture,
    random_teacher,
    sorting_is_exact,
)
from space.verification.reload import captured_warnings, reload_error

_GROUPS = (
    {Axis.HEADS, Axis.KV_HEADS},
    {Axis.HEAD_DIM},
    {Axis.MLP},
    {Axis.EXPERT_MLP},
    {Axis.SHARED_MLP},
    {Axis.EXPERTS},
    {Axis.HIDDEN},
)
_COMBINATIONS = 100
#: Numbers of random students: for each axis alone, and for all axes together.
_ALONE, _TOGETHER = 4, 4


@dataclass(frozen=True)
class Verified:
    """What was found on the tiny copy ``model`` of a teacher, whose map is ``small``.

    The other fields hold for all sizes; ``choices``, ``attention`` and ``tie`` are arguments of ``discover``.
    """

    small: AxisMap
    model: PreTrainedModel
    choices: Choices
    attention: frozenset[str]
    tie: HiddenTie | None
    scales: Scales
    failures: dict[Axis, str]


def verified_axis_map(config: PretrainedConfig, basis: BasisName = BasisName.COORDINATE) -> AxisMap:
    """Return the axis map of a teacher in which every axis is either verified or refused.

    Args:
        config: the config of the teacher.
        basis: the basis for hidden.

    Raises:
        InputError: the type is no decoder, no axis passes, or the class does not allow the basis.
    """
    verified = verify(config)
    whole = discover(config, verified.choices, verified.attention, verified.tie).axis_map
    if differing := _differing_tensor(whole, verified.small):
        raise _refusal(config, f"{differing} is not made as in the small copy that its axes are tried on")
    refused = dict(whole.refused) | verified.failures
    whole = replace(whole, scales=verified.scales, refused=refused)
    if not whole.free:
        reasons = "; ".join(f"{axis}: {why}" for axis, why in refused.items())
        raise _refusal(config, f"none of its axes can be cut ({reasons})")
    return whole if basis is BasisName.COORDINATE else _with_rotatable_stream(whole, verified)


def _with_rotatable_stream(whole: AxisMap, verified: Verified) -> AxisMap:
    """Add to the map what a rotation of the residual stream needs; refuse a class that does not allow one."""
    tokens = contract_tokens(verified.model.config.vocab_size)
    whole = with_stream(whole, verified.small, verified.model, tokens)
    if whole.stream is None:
        raise InputError(
            "A basis other than coordinates needs a stream that can be turned",
            f"that of {whole.config.model_type!r} cannot: something acts on its coordinates one by one",
            "Take --basis coordinate",
        )
    return whole


def verify(config: PretrainedConfig) -> Verified:
    """Find and test on a tiny copy what holds for a teacher's class and flags.

    Raises:
        InputError: the type is no decoder, or its tiny copy does not run.
    """
    reason = why_not_a_decoder(config)
    if reason:
        raise _refusal(config, reason)
    state = torch.get_rng_state()
    with captured_warnings():
        found = _try_ties(config)
    torch.set_rng_state(state)
    if found.small.free and (error := reload_error(found.model, found.small)):
        raise _refusal(config, f"none of its students can be saved and read back: {error}")
    return found


def _try_ties(config: PretrainedConfig) -> Verified:
    """Find the tie and the layout choices with which most axes pass."""
    try:
        small = tiny_config(config)
        model = random_teacher(small)
        attention = _attention(model, discover(small).axis_map)
    except InputError:
        raise
    except BUILD_ERRORS as error:
        raise _refusal(config, f"a small copy of it does not run ({refusal_reason(error)})") from error
    found = _verify_with_tie(model, small, attention, None)
    for tie in (HiddenTie.HEADS, HiddenTie.HEAD_DIM) if Axis.HIDDEN in found.small.refused else ():
        other = _verify_with_tie(model, small, attention, tie)
        if len(other.small.refused.keys() - {Axis.HEADS}) < len(found.small.refused):
            found = other
    if found.tie is None and _head_size_can_be_pruned(model, small, attention, found.choices):
        found = _verify_with_tie(model, small, attention, HiddenTie.NOTHING)
    return found


def _differing_tensor(whole: AxisMap, small: AxisMap) -> str | None:
    """Return the first tensor whose layouts, apart from sizes, do not occur for it in the small copy."""

    def forms(axis_map: AxisMap) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for tensor in axis_map.tensors:
            form = re.sub(r"\d+", "n", " ".join(map(str, tensor.dimensions)))
            found.setdefault(wildcard_name(tensor.name), set()).add(form)
        return found

    seen = forms(small)
    return next((name for name, of in forms(whole).items() if not of <= seen.get(name, set())), None)


def _verify_with_tie(
    model: PreTrainedModel, small: PretrainedConfig, attention: frozenset[str], tie: HiddenTie | None
) -> Verified:
    probes = probe_sizes(small, tie)

    def draw(choices: Choices) -> AxisMap:
        return map_from_probes(probes, choices, attention, tie).axis_map

    draft = map_from_probes(probes, None, attention, tie)
    choices = _choose_layouts(model, draft, draw)
    axis_map = _with_scales(model, draw(choices), attention)
    if tie is HiddenTie.HEAD_DIM:
        # Reordering within heads keeps the logits in every candidate layout; only pruning tells them apart.
        for choice in _combinations(draft, _open_dimensions(draft, {Axis.HEAD_DIM})):
            other = _with_scales(model, draw(choices | choice), attention)
            if not _breach(model, other, {Axis.HIDDEN}, _ALONE):
                axis_map, choices = other, choices | choice
                break
    failures = _failures(model, axis_map)
    axis_map = replace(axis_map, refused={**axis_map.refused, **failures})
    return Verified(axis_map, model, choices, attention, tie, axis_map.scales, failures)


def _head_size_can_be_pruned(
    model: PreTrainedModel, small: PretrainedConfig, attention: frozenset[str], choices: Choices
) -> bool:
    """Whether head_dim can be an axis of its own: it has a field, and no rotary positions depend on it."""
    probes = probe_sizes(small, HiddenTie.NOTHING)
    if Axis.HEAD_DIM not in probes.fields:
        return False
    axis_map = _with_scales(
        model, map_from_probes(probes, choices, attention, HiddenTie.NOTHING).axis_map, attention
    )
    return Axis.HEAD_DIM in axis_map.free and not _breach(model, axis_map, {Axis.HEAD_DIM}, _ALONE)


def _attention(model: PreTrainedModel, axis_map: AxisMap) -> frozenset[str]:
    tokens = contract_tokens(model.config.vocab_size)[:1]
    return token_mixing_modules(model, layer_modules(model, axis_map), tokens)


def _choose_layouts(
    model: PreTrainedModel, draft: DraftMap, draw: Callable[[Choices], AxisMap]
) -> dict[Dimension, int]:
    """Choose for each ambiguous dimension the first layout with which random reordering keeps the logits."""
    chosen: dict[Dimension, int] = {}
    for axes in _GROUPS:
        # First try the layouts already chosen for other groups of axes.
        for choice in chain(({},), _combinations(draft, _open_dimensions(draft, axes))):
            axis_map = draw(chosen | choice)
            if all(sorting_is_exact(model, axis_map, axes, seed) for seed in (1, 2)):
                chosen |= choice
                break
    return chosen


def _open_dimensions(draft: DraftMap, axes: Collection[Axis]) -> list[Dimension]:
    return [dimension for dimension, layouts in draft.open.items() if set(axes_of(layouts[0])) & set(axes)]


def _combinations(draft: DraftMap, dimensions: list[Dimension]) -> Iterator[dict[Dimension, int]]:
    """Yield choices for some dimensions, beginning with those closest to the first candidates.

    Dimensions with the same candidates (such as a weight and its bias) get the same choice.
    """
    alike: dict[object, list[Dimension]] = {}
    for dimension in dimensions:
        alike.setdefault(draft.open[dimension], []).append(dimension)
    ranges = [range(len(layouts)) for layouts in alike]  # type: ignore[arg-type]
    for numbers in islice(sorted(product(*ranges), key=sum), _COMBINATIONS) if dimensions else ():
        yield {dimension: n for group, n in zip(alike.values(), numbers, strict=True) for dimension in group}


def _with_scales(model: PreTrainedModel, axis_map: AxisMap, attention: frozenset[str]) -> AxisMap:
    """Add to the map the factors that the class derives from hidden and from the head size."""
    if Axis.HIDDEN in axis_map.free:
        drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(0))
        try:
            architecture, kept = drawn or (axis_map.teacher, range(axis_map.teacher.layers))
            narrow = random_teacher(student_config(axis_map, architecture, kept))
            axis_map = replace(axis_map, scales=measure_scales(model, narrow, axis_map, architecture.hidden))
        except BUILD_ERRORS:
            return axis_map
    cut = {Axis.HEAD_DIM} if Axis.HEAD_DIM in axis_map.free else {Axis.HIDDEN}
    for queries in _query_positions(axis_map, attention) if axis_map.teacher.head_dim else ():
        other = replace(axis_map, scales=replace(axis_map.scales, queries=queries))
        if not contract_breach(model, other, cut, 0):
            return other
    return axis_map


def _query_positions(axis_map: AxisMap, attention: frozenset[str]) -> Iterator[dict[Dimension, int]]:
    """Yield the possible positions of the queries: one of three parts of a fused tensor, or own tensors."""
    rows = {
        (wildcard_name(tensor.name), place): layout
        for tensor in axis_map.tensors
        for place, layout in enumerate(tensor.dimensions)
        if Axis.HEAD_DIM in tensor.axes[place] and wildcard_name(tensor.module) not in attention
    }
    fused = [key for key, at in rows.items() if isinstance(at, Concatenated) or "3×head_dim" in str(at)]
    for part in range(3 if fused else 0):
        yield dict.fromkeys(fused, part)
    yield dict.fromkeys([key for key, at in rows.items() if Axis.HEADS in axes_of(at)], 0)


def _failures(model: PreTrainedModel, axis_map: AxisMap) -> dict[Axis, str]:
    """Return the axes that fail, with the reason.

    If each axis passes alone but all together fail, refuse one axis without which the rest pass, or else all.
    """
    failures: dict[Axis, str] = {}
    for axis in axis_map.free:
        if found := _breach(model, axis_map, {axis}, _ALONE):
            failures[axis] = found
    left = [axis for axis in axis_map.free if axis not in failures]
    if len(left) < 2 or not (found := _breach(model, axis_map, left, _TOGETHER)):
        return failures
    for left_out in reversed(left):
        if not _breach(model, axis_map, [axis for axis in left if axis is not left_out], _TOGETHER):
            return failures | {left_out: f"together with the others, {found}"}
    return failures | dict.fromkeys(left, f"together with the others, {found}")


def _breach(model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], draws: int) -> str | None:
    return next(
        (found for seed in range(draws) if (found := contract_breach(model, axis_map, axes, seed))), None
    )


def _refusal(config: PretrainedConfig, why: str) -> InputError:
    return InputError(
        "The teacher has to be a decoder whose students are exact",
        f"{config.model_type!r} is not: {why}",
        "Choose another teacher with --model; `python -m space.families` lists every type and why",
    )
