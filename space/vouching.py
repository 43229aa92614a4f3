"""No teacher is cut whose class has not just been seen to keep the contract.

A copy of the teacher with tiny sizes and all its flags is built with random weights. On it is found
what shapes cannot tell (``space.discovery`` leaves it open), and on it every axis is tried: students
against the masked teacher. An axis that fails is refused with what failed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import torch
from transformers import PretrainedConfig, PreTrainedModel

from space.architecture import Axis
from space.axis_map import AxisMap, layer_modules
from space.contract.draws import random_architecture, random_teacher
from space.contract.scaling import measured
from space.contract.trial import breach, sorting_keeps, trial_tokens
from space.discovery import Choices, Draft, Spot, discover
from space.extraction import student_config
from space.families.decoders import no_decoder
from space.families.tiny import tiny
from space.input_error import InputError
from space.layout import axes_of
from space.mixing import modules_that_mix
from space.scales import Scales

_GROUPS = (
    {Axis.HEADS, Axis.KV_HEADS},
    {Axis.MLP},
    {Axis.EXPERT_MLP},
    {Axis.SHARED_MLP},
    {Axis.EXPERTS},
    {Axis.HIDDEN},
)
_COMBINATIONS = 100
#: Random students for each axis alone and for all together.
_ALONE, _TOGETHER = 3, 3


@dataclass(frozen=True)
class Vouched:
    """What was found on the tiny copy of a teacher, and holds for its class and flags."""

    small: AxisMap
    model: PreTrainedModel
    choices: Choices
    attention: frozenset[str]
    scales: Scales
    failures: dict[Axis, str]


def axis_map_of(config: PretrainedConfig) -> AxisMap:
    """The map of a teacher, every axis of it tried or refused.

    Raises:
        InputError: the type is no decoder, or not even one axis keeps the contract.
    """
    vouched = vouch(config)
    whole = discover(config, vouched.choices, vouched.attention).axis_map
    refused = dict(whole.refused) | vouched.failures
    whole = replace(whole, scales=vouched.scales, refused=refused)
    if not whole.free:
        reasons = "; ".join(f"{axis}: {why}" for axis, why in refused.items())
        raise _refusal(config, f"none of its axes can be cut ({reasons})")
    return whole


def vouch(config: PretrainedConfig) -> Vouched:
    """Find out on a tiny copy what holds for a teacher's class and flags.

    Raises:
        InputError: the type is no decoder, or its tiny copy does not run.
    """
    reason = no_decoder(config)
    if reason:
        raise _refusal(config, reason)
    state = torch.get_rng_state()
    small = tiny(config)
    model = random_teacher(small)
    attention = _attention(model, discover(small).axis_map)
    draft = discover(small, attention=attention)
    choices = _chosen(model, draft, small, attention)
    axis_map = discover(small, choices, attention).axis_map
    axis_map = replace(axis_map, scales=_scales(model, axis_map))
    failures = _failures(model, axis_map)
    torch.set_rng_state(state)
    axis_map = replace(axis_map, refused={**axis_map.refused, **failures})
    return Vouched(axis_map, model, choices, attention, axis_map.scales, failures)


def _attention(model: PreTrainedModel, axis_map: AxisMap) -> frozenset[str]:
    tokens = trial_tokens(model.config.vocab_size)[:1]
    return modules_that_mix(model, layer_modules(model, axis_map), tokens)


def _chosen(
    model: PreTrainedModel, draft: Draft, config: PretrainedConfig, attention: frozenset[str]
) -> dict[Spot, int]:
    """For each doubtful dimension the first candidate under which a random order keeps the logits."""
    chosen: dict[Spot, int] = {}
    for axes in _GROUPS:
        spots = [spot for spot, layouts in draft.open.items() if set(axes_of(layouts[0])) & axes]
        for choice in _combinations(draft, spots):
            axis_map = discover(config, chosen | choice, attention).axis_map
            if all(sorting_keeps(model, axis_map, axes, seed) for seed in (1, 2)):
                chosen |= choice
                break
    return chosen


def _combinations(draft: Draft, spots: list[Spot]) -> Iterator[dict[Spot, int]]:
    """Choices for some dimensions; those that differ least from the first candidates come first.

    Dimensions with the same candidates (a weight and its bias) go together.
    """
    alike: dict[object, list[Spot]] = {}
    for spot in spots:
        alike.setdefault(draft.open[spot], []).append(spot)
    ranges = [range(len(layouts)) for layouts in alike]  # type: ignore[arg-type]
    for numbers in islice(sorted(product(*ranges), key=sum), _COMBINATIONS) if spots else ():
        yield {spot: n for group, n in zip(alike.values(), numbers, strict=True) for spot in group}


def _scales(model: PreTrainedModel, axis_map: AxisMap) -> Scales:
    if Axis.HIDDEN not in axis_map.free:
        return Scales()
    drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(0))
    if drawn is None:
        return Scales()
    architecture, kept = drawn
    narrow = random_teacher(student_config(axis_map, architecture, kept))
    return measured(model, narrow, axis_map, architecture.hidden)


def _failures(model: PreTrainedModel, axis_map: AxisMap) -> dict[Axis, str]:
    failures: dict[Axis, str] = {}
    for axis in axis_map.free:
        for seed in range(_ALONE):
            if found := breach(model, axis_map, {axis}, seed):
                failures[axis] = found
                break
    left = [axis for axis in axis_map.free if axis not in failures]
    for seed in range(_TOGETHER if len(left) > 1 else 0):
        if found := breach(model, axis_map, left, seed):
            return failures | dict.fromkeys(left, f"together with the others, {found}")
    return failures


def _refusal(config: PretrainedConfig, why: str) -> InputError:
    return InputError(
        "The teacher has to be a decoder whose students are exact",
        f"{config.model_type!r} is not: {why}",
        "Choose another teacher with --model; `python -m space.families` lists every type and why",
    )
