"""Norms that cannot be folded: the head stays tied, and the turned teacher is just what it is said to be."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from evaluators.importance.kept_coordinates import norms_in_basis
from evaluators.importance.method import Method
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, wildcard_name
from space.cutting.basis import Basis, BasisName, fold_norms, hidden_dimension
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.verification.behaviour import with_stream
from space.verification.contract import (
    TOLERANCE,
    contract_tokens,
    distance,
    logits_of,
    one_expert_at_a_time,
    random_architecture,
)
from space.verification.verification import verify
from tests.contracts.tiny import each

#: Tied; of the second and third, norms write into the stream as well.
ROOT_MEAN_SQUARE = ("llama", "gemma2", "olmo2", "gemma", "qwen3", "granite", "olmo3")
#: Tied, and they subtract the mean; of the first, a norm lies behind the embeddings.
CENTRED = ("bloom", "gpt2", "cohere", "opt")


@cache
def tied(model_type: str) -> tuple[PreTrainedModel, AxisMap, Ranking]:
    config = CONFIG_MAPPING[model_type]()
    config.tie_word_embeddings = True
    found = verify(config)
    tokens = contract_tokens(found.model.config.vocab_size)
    axis_map = with_stream(found.small, found.small, found.model, tokens)
    ranking = rank(found.model, axis_map, tokens, "", method=Method(basis=BasisName.WEIGHTED))
    return found.model, axis_map, ranking


@pytest.mark.parametrize("model_type", each(*ROOT_MEAN_SQUARE, *CENTRED, also_slow=("qwen3", "olmo3", "opt")))
def test_the_turned_teacher_is_its_own_definition(model_type: str) -> None:
    """Sorted, it computes what the teacher does whose norms act along the directions of the basis."""
    model, axis_map, ranking = tied(model_type)
    assert axis_map.stream is not None
    assert axis_map.roles.head == axis_map.roles.embedding
    assert axis_map.stream.centred == (model_type in CENTRED)
    basis = ranking.basis
    assert basis is not None
    assert axis_map.roles.final_norm in basis.norms
    tokens = contract_tokens(model.config.vocab_size)
    own = logits_of(model, tokens)
    with norms_in_basis(model, axis_map, basis):
        wanted = logits_of(model, tokens)
    assert distance(logits_of(model, tokens), own) == 0
    assert distance(wanted, own) > 10 * TOLERANCE
    whole = copy.deepcopy(model)
    whole.load_state_dict(sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking), strict=False)
    assert distance(logits_of(whole, tokens), wanted) < TOLERANCE


@pytest.mark.parametrize(
    "model_type", each(*ROOT_MEAN_SQUARE, also_slow=("gemma", "qwen3", "olmo3", "granite"))
)
@pytest.mark.parametrize("seed", [3, 8])
def test_a_student_is_the_masked_turned_teacher(model_type: str, seed: int) -> None:
    model, axis_map, ranking = tied(model_type)
    drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(seed))
    assert drawn is not None
    architecture, layers = drawn
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    student = extract(canonical, axis_map, ranking, architecture, layers)
    assert student.config.tie_word_embeddings
    tokens = contract_tokens(model.config.vocab_size)
    one_expert_at_a_time(student)
    with masked(model, axis_map, ranking, architecture.hidden) as oracle:
        assert distance(logits_of(student, tokens), logits_of(oracle, tokens)) < TOLERANCE


@contextmanager
def masked(
    model: PreTrainedModel, axis_map: AxisMap, ranking: Ranking, kept: int
) -> Iterator[PreTrainedModel]:
    """The teacher in its own coordinates; all that is written into the stream lies in the kept directions."""
    stream, basis, size = axis_map.stream, ranking.basis, axis_map.teacher.hidden
    assert stream is not None
    assert basis is not None
    oracle, directions, root = copy.deepcopy(model), basis.rotation[:, :kept], (kept / size) ** 0.5
    one_expert_at_a_time(oracle)
    readers = {name for names in (*stream.readers.values(), stream.bare) for name in names}
    weights = fold_norms(saved_tensors(model, axis_map), axis_map, stream)
    for tensor in axis_map.tensors:
        name, values = wildcard_name(tensor.name), weights[tensor.name]
        if not tensor.has(Axis.HIDDEN) or name in readers:
            continue
        if name in stream.readers:
            values = torch.full_like(values, basis.gain(kept) * root - stream.offset)
        elif name in stream.unfolded:
            values = torch.full_like(values, root - stream.offset)
            module = oracle.get_submodule(tensor.module)
            module.register_forward_hook(partial(_along, directions, basis, tensor.name, kept))
        else:
            place = hidden_dimension(tensor.axes)
            values = (values.movedim(place, -1) @ directions @ directions.T).movedim(-1, place)
        weights[tensor.name] = values.detach().contiguous()
    oracle.load_state_dict(weights, strict=False)
    over_hidden = {t.module for t in axis_map.tensors if t.axes == (frozenset({Axis.HIDDEN}),)}
    for name_of in over_hidden:
        module = oracle.get_submodule(name_of)
        for name in ("eps", "variance_epsilon"):
            if isinstance(found := getattr(module, name, None), float):
                setattr(module, name, found * kept / size)
    yield oracle


def _along(
    directions: Tensor, basis: Basis, name: str, kept: int, _: nn.Module, __: Any, output: Tensor
) -> Tensor:
    return (output @ directions * basis.norms[name].gains(kept)) @ directions.T


@pytest.mark.parametrize("model_type", each("llama", "olmo2", "cohere"))
def test_every_size_is_a_prefix(model_type: str) -> None:
    """But for the gains of norms, a smaller student's tensors are the first entries of a larger one's."""
    model, axis_map, ranking = tied(model_type)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    whole = axis_map.teacher
    larger, smaller = (
        extract(canonical, axis_map, ranking, axis_map.complete({Axis.HIDDEN: whole.hidden - less}), None)
        for less in (12, 24)
    )
    first, second = saved_tensors(larger, axis_map), saved_tensors(smaller, axis_map)
    assert axis_map.stream is not None
    norms = {*axis_map.stream.readers, *axis_map.stream.unfolded}
    for tensor in axis_map.tensors:
        if wildcard_name(tensor.name) not in norms and not axis_map.scales.embedding:
            cut = first[tensor.name][tuple(slice(0, n) for n in second[tensor.name].shape)]
            torch.testing.assert_close(second[tensor.name], cut, rtol=0, atol=0)


def test_a_ranking_is_kept_with_all_of_its_basis(tmp_path: Any) -> None:
    _, _, ranking = tied("gemma2")
    ranking.save(tmp_path / "ranking.safetensors")
    found = Ranking.load(tmp_path / "ranking.safetensors", None)
    assert found is not None
    assert found.basis is not None
    assert ranking.basis is not None
    assert (found.basis.kept, found.basis.loss_added) == (ranking.basis.kept, ranking.basis.loss_added)
    assert found.basis.tensors().keys() == ranking.basis.tensors().keys()
    for name, values in ranking.basis.tensors().items():
        torch.testing.assert_close(found.basis.tensors()[name], values, rtol=0, atol=0)
