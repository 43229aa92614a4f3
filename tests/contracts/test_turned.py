"""In a turned basis the whole teacher computes what it did, and students are cut from that."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import CONFIG_MAPPING

from space.axes.architecture import Axis
from space.axes.axis_map import build, wildcard_name
from space.counting.counting import parameter_polynomial
from space.cutting.basis import Basis, BasisName, basis_of, fold_norms, hidden_dimension, rotate_stream
from space.cutting.extraction import extract, model_from_weights, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.behaviour import random_rotation, with_stream
from space.verification.contract import (
    TOLERANCE,
    contract_tokens,
    distance,
    logits_of,
    one_expert_at_a_time,
    random_architecture,
    random_ranking,
)
from space.verification.verification import Verified, verified_axis_map, verify
from tests.contracts.tiny import each

TURNABLE = ("llama", "qwen3", "gemma", "mixtral", "phi3", "gpt_oss")
#: Their norms subtract the mean.
CENTRED = ("gpt2", "gpt_neox", "falcon", "stablelm", "nemotron", "cohere")


@cache
def apart(model_type: str) -> Verified:
    """A small copy whose head is a matrix of its own."""
    config = CONFIG_MAPPING[model_type]()
    config.tie_word_embeddings = False
    return verify(config)


def turn(model_type: str, seed: int) -> tuple[Verified, Ranking]:
    found = apart(model_type)
    hidden = found.small.teacher.hidden
    generator = torch.Generator().manual_seed(seed)
    rotation = random_rotation(hidden, model_type in CENTRED, seed)
    ranking = random_ranking(found.small, seed)
    basis = Basis(rotation, torch.rand(hidden, generator=generator) + 0.5)
    return found, Ranking(ranking.scores, ranking.kv_heads, "", "", ranking.expert_groups, basis)


@pytest.mark.parametrize("model_type", each(*TURNABLE, *CENTRED, also_slow=("qwen3", "phi3", "gpt_neox")))
def test_the_whole_teacher_keeps_its_logits(model_type: str) -> None:
    found, ranking = turn(model_type, 1)
    tokens = contract_tokens(found.model.config.vocab_size)
    axis_map = with_stream(found.small, found.small, found.model, tokens)
    assert axis_map.stream is not None
    assert axis_map.stream.centred == (model_type in CENTRED)
    canonical = sort_by_importance(saved_tensors(found.model, axis_map), axis_map, ranking)
    whole = copy.deepcopy(found.model)
    whole.load_state_dict(canonical, strict=False)
    assert distance(logits_of(whole, tokens), logits_of(found.model, tokens)) < TOLERANCE


def test_a_stream_that_cannot_be_turned_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = apart("llama")
    tokens = contract_tokens(found.model.config.vocab_size)
    model = copy.deepcopy(found.model)
    scales = torch.linspace(0.5, 2, found.small.teacher.hidden)
    model.model.layers[1].register_forward_hook(lambda *given: given[-1] * scales)
    assert with_stream(found.small, found.small, model, tokens).stream is None
    monkeypatch.setattr("space.verification.verification.with_stream", lambda whole, *_: whole)
    with pytest.raises(InputError, match=r"needs a stream that can be turned.*Take --basis coordinate"):
        verified_axis_map(CONFIG_MAPPING["llama"](), BasisName.WEIGHTED)


@pytest.mark.parametrize("model_type", each("llama", "mixtral"))
def test_a_student_is_a_prefix_of_the_turned_teacher_with_the_gain(model_type: str) -> None:
    """Cut by coordinates from a teacher turned by hand, with its norms set, it is the same."""
    found, ranking = turn(model_type, 2)
    tokens = contract_tokens(found.model.config.vocab_size)
    axis_map = with_stream(found.small, found.small, found.model, tokens)
    drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(3))
    assert drawn is not None
    assert axis_map.stream is not None
    assert ranking.basis is not None
    architecture, kept = drawn
    weights = saved_tensors(found.model, axis_map)
    student = extract(sort_by_importance(weights, axis_map, ranking), axis_map, ranking, architecture, kept)

    by_hand = rotate_stream(
        fold_norms(weights, axis_map, axis_map.stream), axis_map, axis_map.stream, ranking.basis.rotation
    )
    in_order = {**ranking.scores, Axis.HIDDEN: -torch.arange(axis_map.teacher.hidden).float()}
    plain = Ranking(in_order, ranking.kv_heads, "", "", ranking.expert_groups)
    model = model_from_weights(axis_map.config, by_hand)
    cut = extract(
        sort_by_importance(saved_tensors(model, axis_map), axis_map, plain),
        axis_map,
        plain,
        architecture,
        kept,
    )
    gain = float((ranking.basis.energy[: architecture.hidden].sum() / architecture.hidden).sqrt())
    for module in cut.modules():
        if type(module).__name__.endswith("RMSNorm") and module.weight.shape == (architecture.hidden,):
            torch.nn.init.constant_(module.weight, gain)  # type: ignore[arg-type]
    for model in (student, cut):
        one_expert_at_a_time(model)
    assert distance(logits_of(student, tokens), logits_of(cut, tokens)) < TOLERANCE


@pytest.mark.parametrize("model_type", ["cohere", *each("nemotron")])
@pytest.mark.parametrize("seed", [2, 9])
def test_norms_that_subtract_the_mean_see_one_direction_less_and_no_other(model_type: str, seed: int) -> None:
    """The oracle has the teacher's size: what is written is projected on the first k − 1 directions."""
    found = apart(model_type)
    tokens = contract_tokens(found.model.config.vocab_size)
    axis_map = with_stream(found.small, found.small, found.model, tokens)
    assert axis_map.stream is not None
    size = axis_map.teacher.hidden
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    centring = torch.eye(size).double() - 1 / size
    covariance = centring @ noise @ noise.T @ centring
    covariance *= size / covariance.trace()
    basis = basis_of(BasisName.PRINCIPAL, covariance, torch.eye(size).double(), centred=True)
    ranking = replace(random_ranking(axis_map, 0, ()), basis=basis)
    weights = saved_tensors(found.model, axis_map)
    drawn = random_architecture(axis_map, {Axis.HIDDEN}, random.Random(seed))
    assert drawn is not None
    architecture, layers = drawn
    kept = architecture.hidden
    canonical = sort_by_importance(weights, axis_map, ranking)
    student = extract(canonical, axis_map, ranking, architecture, layers)

    best = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, : kept - 1].float()
    coordinates = basis.rotation[:, :kept]
    by_hand = fold_norms(weights, axis_map, axis_map.stream)
    readers = {name for names in axis_map.stream.readers.values() for name in names}
    biases = {f"{name.removesuffix('weight')}bias" for name in axis_map.stream.readers}
    for tensor in axis_map.tensors:
        if not tensor.has(Axis.HIDDEN) or wildcard_name(tensor.name) in readers:
            continue
        values = by_hand[tensor.name]
        if wildcard_name(tensor.name) in axis_map.stream.readers:
            gain = basis.gain(kept) * (kept / size) ** 0.5
            by_hand[tensor.name] = torch.full_like(values, gain - axis_map.stream.offset)
            continue
        onto = coordinates if wildcard_name(tensor.name) in biases else best
        place = hidden_dimension(tensor.axes)
        by_hand[tensor.name] = (values.movedim(place, -1) @ onto @ onto.T).movedim(-1, place)
    oracle = model_from_weights(axis_map.config, by_hand)
    for module in oracle.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= kept / size
        elif isinstance(epsilon := getattr(module, "variance_epsilon", None), float):
            module.variance_epsilon = epsilon * kept / size  # type: ignore[assignment]
    assert distance(logits_of(student, tokens), logits_of(oracle, tokens)) < TOLERANCE


def test_a_tied_teacher_is_counted_as_it_was_given() -> None:
    config = tiny_config(CONFIG_MAPPING["gemma"]())
    assert config.tie_word_embeddings
    axis_map = verified_axis_map(config, BasisName.PRINCIPAL)
    given = sum(parameter.numel() for parameter in build(config).parameters())
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == given
