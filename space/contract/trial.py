"""The contract of extraction, tried on a model small enough to run in milliseconds."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from space.architecture import Axis
from space.axis_map import AxisMap
from space.contract.draws import one_expert_at_a_time, random_architecture, random_ranking
from space.contract.masked import masked
from space.extraction import extract, saved_tensors, sort_by_importance
from space.input_error import InputError
from space.probing import Refusal

#: Float32 logits of two ways to compute the same thing; relative to the largest logit.
TOLERANCE = 1e-4


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, V) without a cache."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def trial_tokens(vocabulary: int) -> Tensor:
    """(2, 12) token numbers, longer than any window of the small models."""
    return torch.randint(3, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, over the largest size of a logit but at least one."""
    if one.shape != other.shape or not torch.isfinite(one).all():
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


def sorting_keeps(model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], seed: int) -> bool:
    """Whether the model computes the same after the given axes were put in a random order."""
    tokens = trial_tokens(model.config.get_text_config().vocab_size)
    sorted_model = copy.deepcopy(model)
    try:
        ranking = random_ranking(axis_map, seed, axes)
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    except Refusal:
        return False
    sorted_model.load_state_dict(canonical, strict=False)
    sorted_model.tie_weights()
    return distance(logits_of(sorted_model, tokens), logits_of(model, tokens)) < TOLERANCE


def breach(
    model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], seed: int
) -> str | None:
    """What is wrong with students that are cut along some axes; None if nothing is.

    Args:
        model: a small teacher with real weights.
        axis_map: its map.
        axes: along which one random architecture is drawn.
        seed: of architecture, layers and ranking.
    """
    drawn = random_architecture(axis_map, axes, random.Random(seed))
    if drawn is None:
        return "the class allows no smaller size that was tried"
    architecture, kept = drawn
    tokens = trial_tokens(model.config.get_text_config().vocab_size)
    refused = dict.fromkeys(set(axis_map.free) - set(axes), "not on trial") | dict(axis_map.refused)
    axis_map = replace(axis_map, refused=refused)
    ranking = random_ranking(axis_map, seed, axis_map.sortable | {Axis.LAYERS})
    try:
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
        student = extract(canonical, axis_map, ranking, architecture, kept)
        one_expert_at_a_time(student)
        found = logits_of(student, tokens)
    except InputError as error:
        return error.values
    except Refusal as error:
        return f"the student does not run ({type(error).__name__}: {error})".splitlines()[0][:160]
    with masked(model, axis_map, ranking, architecture, kept) as oracle:
        wanted = logits_of(oracle, tokens)
    apart = distance(found, wanted)
    if apart < TOLERANCE:
        return None
    return f"logits differ from the masked teacher's by {apart:.1g}"
