"""No teacher is cut whose class has not just been seen to keep the contract.

A copy of the teacher with tiny sizes and all its flags is built with random weights. On it is found
what shapes cannot tell (``space.discovery`` leaves it open), and on it every axis is tried: students
against the masked teacher. An axis that fails is refused with what failed.
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
from space.axes.config_fields import with_sizes
from space.axes.layout import Concatenated, axes_of
from space.cutting.basis import BasisName
from space.cutting.extraction import student_config
from space.discovery.discovery import Choices, DraftMap, Spot, discover, map_from_probes, probe_sizes
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
#: Random students for each axis alone and for all together.
_ALONE, _TOGETHER = 4, 4


@dataclass(frozen=True)
class Verified:
    """What was found on the tiny copy of a teacher, and holds for its class and flags."""

    small: AxisMap
    model: PreTrainedModel
    choices: Choices
    attention: frozenset[str]
    tie: HiddenTie | None
    scales: Scales
    failures: dict[Axis, str]


def verified_axis_map(config: PretrainedConfig, basis: BasisName = BasisName.COORDINATE) -> AxisMap:
    """The map of a teacher, every axis of it tried or refused.

    Args:
        config: the teacher's.
        basis: of hidden. All but coordinates fold the final norm into the head, so that the map then is of
            a teacher whose head and embedding are apart.

    Raises:
        InputError: the type is no decoder, not even one axis keeps the contract, or the class does not
            allow the basis.
    """
    tied = basis is not BasisName.COORDINATE and bool(config.tie_word_embeddings)
    if tied:
        config = with_sizes(config, {"tie_word_embeddings": False})
    verified = verify(config)
    whole = discover(config, verified.choices, verified.attention, verified.tie).axis_map
    if unseen := _unlike(whole, verified.small):
        raise _refusal(config, f"{unseen} is not made as in the small copy that its axes are tried on")
    refused = dict(whole.refused) | verified.failures
    whole = replace(whole, scales=verified.scales, refused=refused, head_apart=tied)
    if not whole.free:
        reasons = "; ".join(f"{axis}: {why}" for axis, why in refused.items())
        raise _refusal(config, f"none of its axes can be cut ({reasons})")
    return whole if basis is BasisName.COORDINATE else _turnable(whole, verified)


def _turnable(whole: AxisMap, verified: Verified) -> AxisMap:
    tokens = contract_tokens(verified.model.config.vocab_size)
    whole = with_stream(whole, verified.small, verified.model, tokens)
    if whole.stream is None:
        raise InputError(
            "A basis other than coordinates needs a stream that can be turned",
            f"that of {whole.config.model_type!r} cannot: norms write into it or something scales it",
            "Take --basis coordinate",
        )
    return whole


def verify(config: PretrainedConfig) -> Verified:
    """Find out on a tiny copy what holds for a teacher's class and flags.

    Raises:
        InputError: the type is no decoder, or its tiny copy does not run.
    """
    reason = why_not_a_decoder(config)
    if reason:
        raise _refusal(config, reason)
    state = torch.get_rng_state()
    with captured_warnings():
        found = _tried(config)
    torch.set_rng_state(state)
    if found.small.free and (lost := reload_error(found.model, found.small)):
        raise _refusal(config, f"none of its students can be saved and read back: {lost}")
    return found


def _tried(config: PretrainedConfig) -> Verified:
    """The tie and the choices under which most axes hold."""
    try:
        small = tiny_config(config)
        model = random_teacher(small)
        attention = _attention(model, discover(small).axis_map)
    except InputError:
        raise
    except BUILD_ERRORS as error:
        raise _refusal(config, f"a small copy of it does not run ({refusal_reason(error)})") from error
    found = _verified(model, small, attention, None)
    for tie in (HiddenTie.HEADS, HiddenTie.HEAD_DIM) if Axis.HIDDEN in found.small.refused else ():
        other = _verified(model, small, attention, tie)
        if len(other.small.refused.keys() - {Axis.HEADS}) < len(found.small.refused):
            found = other
    if found.tie is None and _heads_shrink(model, small, attention, found.choices):
        found = _verified(model, small, attention, HiddenTie.NOTHING)
    return found


def _unlike(whole: AxisMap, small: AxisMap) -> str | None:
    """A tensor whose layouts, but for their numbers, are not those of its namesake in the small copy."""

    def forms(axis_map: AxisMap) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for tensor in axis_map.tensors:
            form = re.sub(r"\d+", "n", " ".join(map(str, tensor.dimensions)))
            found.setdefault(wildcard_name(tensor.name), set()).add(form)
        return found

    seen = forms(small)
    return next((name for name, of in forms(whole).items() if not of <= seen.get(name, set())), None)


def _verified(
    model: PreTrainedModel, small: PretrainedConfig, attention: frozenset[str], tie: HiddenTie | None
) -> Verified:
    probes = probe_sizes(small, tie)

    def draw(choices: Choices) -> AxisMap:
        return map_from_probes(probes, choices, attention, tie).axis_map

    draft = map_from_probes(probes, None, attention, tie)
    choices = _chosen(model, draft, draw)
    axis_map = _scaled(model, draw(choices), attention)
    if tie is HiddenTie.HEAD_DIM:
        # A change of places within heads looks the same whatever stands beside what; only a cut tells.
        for choice in _combinations(draft, _spots(draft, {Axis.HEAD_DIM})):
            other = _scaled(model, draw(choices | choice), attention)
            if not _breach(model, other, {Axis.HIDDEN}, _ALONE):
                axis_map, choices = other, choices | choice
                break
    failures = _failures(model, axis_map)
    axis_map = replace(axis_map, refused={**axis_map.refused, **failures})
    return Verified(axis_map, model, choices, attention, tie, axis_map.scales, failures)


def _heads_shrink(
    model: PreTrainedModel, small: PretrainedConfig, attention: frozenset[str], choices: Choices
) -> bool:
    """Whether the class has a head size that can be cut: where positions leave it alone."""
    probes = probe_sizes(small, HiddenTie.NOTHING)
    if Axis.HEAD_DIM not in probes.fields:
        return False
    axis_map = _scaled(
        model, map_from_probes(probes, choices, attention, HiddenTie.NOTHING).axis_map, attention
    )
    return Axis.HEAD_DIM in axis_map.free and not _breach(model, axis_map, {Axis.HEAD_DIM}, _ALONE)


def _attention(model: PreTrainedModel, axis_map: AxisMap) -> frozenset[str]:
    tokens = contract_tokens(model.config.vocab_size)[:1]
    return token_mixing_modules(model, layer_modules(model, axis_map), tokens)


def _chosen(model: PreTrainedModel, draft: DraftMap, draw: Callable[[Choices], AxisMap]) -> dict[Spot, int]:
    """For each doubtful dimension the first candidate under which a random order keeps the logits."""
    chosen: dict[Spot, int] = {}
    for axes in _GROUPS:
        # What another group of axes has settled is tried first.
        for choice in chain(({},), _combinations(draft, _spots(draft, axes))):
            axis_map = draw(chosen | choice)
            if all(sorting_is_exact(model, axis_map, axes, seed) for seed in (1, 2)):
                chosen |= choice
                break
    return chosen


def _spots(draft: DraftMap, axes: Collection[Axis]) -> list[Spot]:
    return [spot for spot, layouts in draft.open.items() if set(axes_of(layouts[0])) & set(axes)]


def _combinations(draft: DraftMap, spots: list[Spot]) -> Iterator[dict[Spot, int]]:
    """Choices for some dimensions; those that differ least from the first candidates come first.

    Dimensions with the same candidates (a weight and its bias) go together.
    """
    alike: dict[object, list[Spot]] = {}
    for spot in spots:
        alike.setdefault(draft.open[spot], []).append(spot)
    ranges = [range(len(layouts)) for layouts in alike]  # type: ignore[arg-type]
    for numbers in islice(sorted(product(*ranges), key=sum), _COMBINATIONS) if spots else ():
        yield {spot: n for group, n in zip(alike.values(), numbers, strict=True) for spot in group}


def _scaled(model: PreTrainedModel, axis_map: AxisMap, attention: frozenset[str]) -> AxisMap:
    """The map with what the class derives from hidden and from the head size, measured or found by trying."""
    if Axis.HIDDEN in axis_map.free:
        drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(0))
        try:
            architecture, kept = drawn or (axis_map.teacher, range(axis_map.teacher.layers))
            narrow = random_teacher(student_config(axis_map, architecture, kept))
            axis_map = replace(axis_map, scales=measure_scales(model, narrow, axis_map, architecture.hidden))
        except BUILD_ERRORS:
            return axis_map
    cut = {Axis.HEAD_DIM} if Axis.HEAD_DIM in axis_map.free else {Axis.HIDDEN}
    for queries in _queries(axis_map, attention) if axis_map.teacher.head_dim else ():
        other = replace(axis_map, scales=replace(axis_map.scales, queries=queries))
        if not contract_breach(model, other, cut, 0):
            return other
    return axis_map


def _queries(axis_map: AxisMap, attention: frozenset[str]) -> Iterator[dict[Spot, int]]:
    """Where queries may stand: in tensors of their own, or as one of three parts of a fused one."""
    rows = {
        (wildcard_name(tensor.name), place): layout
        for tensor in axis_map.tensors
        for place, layout in enumerate(tensor.dimensions)
        if Axis.HEAD_DIM in tensor.axes[place] and wildcard_name(tensor.module) not in attention
    }
    fused = [spot for spot, at in rows.items() if isinstance(at, Concatenated) or "3×head_dim" in str(at)]
    for part in range(3 if fused else 0):
        yield dict.fromkeys(fused, part)
    yield dict.fromkeys([spot for spot, at in rows.items() if Axis.HEADS in axes_of(at)], 0)


def _failures(model: PreTrainedModel, axis_map: AxisMap) -> dict[Axis, str]:
    """What fails, axis by axis; where single axes hold and all together do not, the fewest that spoil it."""
    failures: dict[Axis, str] = {}
    for axis in axis_map.free:
        if found := _breach(model, axis_map, {axis}, _ALONE):
            failures[axis] = found
    left = [axis for axis in axis_map.free if axis not in failures]
    if len(left) < 2 or not (found := _breach(model, axis_map, left, _TOGETHER)):
        return failures
    for spoiler in reversed(left):
        if not _breach(model, axis_map, [axis for axis in left if axis is not spoiler], _TOGETHER):
            return failures | {spoiler: f"together with the others, {found}"}
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
