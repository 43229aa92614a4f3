"""The contract of extraction, tried on a model small enough to run in milliseconds."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, Refusal
from space.axes.scales import starred
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.discovery.probing import last_line
from space.input_error import InputError
from space.verification.draws import one_expert_at_a_time, random_architecture, random_ranking
from space.verification.masked import masked

#: Float32 logits of two ways to compute the same thing, absolute and relative.
TOLERANCE = 1e-4
#: Logits no larger than this would agree whatever was cut.
_FLAT = 1e-3


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, V) without a cache."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def trial_tokens(vocabulary: int) -> Tensor:
    """(2, 12) token numbers, longer than any window of the small models."""
    return torch.randint(3, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of two logits, over one plus its own size; infinite if all are next to 0."""
    if one.shape != other.shape or not torch.isfinite(one).all() or float(other.abs().max()) < _FLAT:
        return float("inf")
    return float(((one - other).abs() / (1 + other.abs())).max())


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


def breach(model: PreTrainedModel, axis_map: AxisMap, axes: Collection[Axis], seed: int) -> str | None:
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
        return _spoken(error)
    try:
        with masked(model, axis_map, ranking, architecture, kept) as oracle:
            wanted = logits_of(oracle, tokens)
    except Refusal as error:
        return f"there is nothing to compare students with ({last_line(error)[:140]})"
    apart = distance(found, wanted)
    if apart < TOLERANCE:
        return None
    return f"logits differ from the masked teacher's by {apart:.1g}"


def _spoken(error: Exception) -> str:
    """Why a student could not be made or run, in words for a user."""
    said = str(error)
    if found := re.search(r"size mismatch for ([\w.]+)", said):
        return f"the class then makes {starred(found[1])} of another shape"
    if isinstance(error, AssertionError):
        return f"it cannot be cut ({last_line(error)[:140]})"
    return f"the student does not run ({type(error).__name__}: {last_line(error)[:140]})"
