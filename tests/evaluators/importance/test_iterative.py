"""Rounds of scoring and pruning against one shot, against loops by hand, and against a planted answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evaluators.importance.iterative import RoundPhase, rank_in_rounds
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.rank import rank
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, layers_kept, saved_tensors, sort_by_importance, student_map
from space.cutting.ranking import Ranking
from space.cutting.rounds import architectures_between
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.contracts.tiny import verified
from tests.evaluators.importance.llama_by_hand import falling
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_model

CALIBRATION = random_tokens(6, 10)
MODEL_TYPES = ("llama", "gpt2", "mixtral")


def in_rounds(
    model: PreTrainedModel, axis_map: AxisMap, target: Architecture, rounds: int, *order: RoundPhase
) -> Ranking:
    return rank_in_rounds(
        model,
        axis_map,
        CALIBRATION,
        "a fingerprint",
        target,
        method=Method(rounds=rounds),
        order=order or (RoundPhase.TOGETHER,),
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_one_round_is_a_single_shot(model_type: str) -> None:
    model = tiny_model(model_type)
    axis_map = map_of(model.config)
    wanted = rank(model, axis_map, CALIBRATION, "a fingerprint")
    found = in_rounds(model, axis_map, replace(axis_map.teacher, layers=1), 1)
    assert found.method == wanted.method == Method().words
    assert found.scores.keys() == wanted.scores.keys()
    for axis, scores in wanted.scores.items():
        assert torch.equal(found.scores[axis], scores)
    for axis, order in wanted.orders.items():
        assert torch.equal(found.orders[axis], order)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounds_are_those_of_a_loop_by_hand(seed: int) -> None:
    """Every unit of every axis in its place: twelve heads in four groups, of which two in one stay."""
    model = tiny_model(
        seed=seed, num_attention_heads=12, num_key_value_heads=4, num_hidden_layers=4, hidden_size=24
    )
    axis_map = map_of(model.config)
    target = axis_map.complete(
        {Axis.HIDDEN: 12, Axis.MLP: 12, Axis.HEADS: 2, Axis.KV_HEADS: 1, Axis.LAYERS: 2}
    )
    sizes = architectures_between(axis_map, target, 3)[:-1]
    wanted = falling(model, CALIBRATION, axis_map.head_dim, sizes)
    before = tiny_model(
        seed=seed, num_attention_heads=12, num_key_value_heads=4, num_hidden_layers=4, hidden_size=24
    )
    found = in_rounds(model, axis_map, target, 3).orders
    assert found[Axis.HIDDEN].tolist() == wanted.hidden
    assert found[Axis.LAYERS].tolist() == wanted.layers
    for layer in range(4):
        assert found[Axis.MLP][layer].tolist() == wanted.mlp[layer]
        assert found[Axis.KV_HEADS][layer].tolist() == wanted.groups[layer]
        for group in range(4):
            assert found[Axis.HEADS][layer, group].tolist() == wanted.heads[layer, group]
    single = rank(model, axis_map, CALIBRATION, "").orders
    assert any(not torch.equal(found[axis], single[axis]) for axis in found)
    assert same_weights(model, before)


@torch.no_grad()
def planted() -> PreTrainedModel:
    """The loudest neuron of the second layer lives on what the quietest of the first writes.

    Hidden dimension 15 is written by neuron 0 of layer 0 alone, and neuron 5 of layer 1 reads nothing else.
    """
    model = tiny_model(num_hidden_layers=2, tie_word_embeddings=False)
    weights = dict(model.named_parameters())
    weights["model.embed_tokens.weight"][:, 15] = 0
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"].zero_()
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][15] = 0
    weights["model.layers.0.mlp.up_proj.weight"][0] *= 1e-3
    weights["model.layers.0.mlp.down_proj.weight"][15, 0] = 1e4
    weights["model.layers.1.mlp.up_proj.weight"][5] = 0
    weights["model.layers.1.mlp.up_proj.weight"][5, 15] = 1e3
    return model


def test_what_fell_in_the_first_round_is_missed_in_the_second() -> None:
    model = planted()
    axis_map = map_of(model.config)
    target = replace(axis_map.teacher, mlp=16)
    once = in_rounds(model, axis_map, target, 1)
    assert once.orders[Axis.MLP][0, -1] == 0
    assert once.orders[Axis.MLP][1, 0] == 5
    twice = in_rounds(model, axis_map, target, 2)
    assert [sizes.mlp for sizes in architectures_between(axis_map, target, 2)] == [20, 16]
    assert twice.orders[Axis.MLP][0, -1] == 0
    assert twice.orders[Axis.MLP][1].tolist().index(5) == 19
    assert twice.method.endswith(f"2 rounds, together, towards {target.label}")


@pytest.mark.parametrize("case", ["llama-tied-biases", "gpt2", "qwen2_moe"])
def test_survivors_are_ordered_as_the_student_ranks_them(case: str) -> None:
    """Mapped back through every cut: fused tensors, heads tied to hidden, experts each with its neurons."""
    found = verified(case)
    axis_map, model = found.small, found.model
    target = architectures_between(axis_map, smallest(axis_map), 2)[0]
    assert all(target[axis] < axis_map.teacher[axis] for axis in (Axis.HIDDEN, Axis.LAYERS))
    first = rank(model, axis_map, CALIBRATION, "")
    layers = layers_kept(axis_map, first, target)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, first)
    student = extract(canonical, axis_map, first, target, layers)
    second = rank(student, student_map(axis_map, target, layers), CALIBRATION, "")
    twice = in_rounds(model, axis_map, smallest(axis_map), 2)
    again = extract(
        sort_by_importance(saved_tensors(model, axis_map), axis_map, twice), axis_map, twice, target, layers
    )
    resorted = sort_by_importance(
        saved_tensors(student, student_map(axis_map, target, layers)),
        student_map(axis_map, target, layers),
        second,
    )
    # The same units in the same order: the student cut by both rounds is the first one's, sorted anew.
    for name, values in again.named_parameters():
        torch.testing.assert_close(values, resorted[name], rtol=1e-5, atol=1e-6)
    assert layers_kept(axis_map, twice, target) == layers


def smallest(axis_map: AxisMap) -> Architecture:
    """About a quarter of every axis, as far as the class allows."""
    sizes = {axis: max(1, axis_map.teacher[axis] // 4) for axis in axis_map.free}
    sizes |= {Axis.KV_HEADS: 1, Axis.HEADS: 1} if Axis.HEADS in axis_map.free else {}
    if any(c.axis is Axis.HEADS for c in axis_map.couplings):
        sizes[Axis.HIDDEN] = axis_map.head_dim
    if Axis.EXPERTS in sizes:
        sizes[Axis.EXPERTS] = 5
    return axis_map.complete({axis: size for axis, size in sizes.items() if axis in axis_map.free})


def test_depth_after_width_is_scored_on_narrow_layers() -> None:
    model = tiny_model(num_hidden_layers=4)
    axis_map = map_of(model.config)
    target = replace(axis_map.teacher, hidden=8, mlp=8, layers=2)
    found = in_rounds(model, axis_map, target, 1, RoundPhase.WIDTH, RoundPhase.DEPTH)
    once = rank(model, axis_map, CALIBRATION, "")
    for axis in (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS):
        assert torch.equal(found.orders[axis], once.orders[axis])
    narrow = replace(target, layers=4)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, once)
    student = extract(canonical, axis_map, once, narrow)
    layers = rank(student, student_map(axis_map, narrow, range(4)), CALIBRATION, "").scores[Axis.LAYERS]
    torch.testing.assert_close(found.scores[Axis.LAYERS].float(), layers)
    assert not torch.equal(layers, once.scores[Axis.LAYERS])


def test_every_phase_is_told_of() -> None:
    told: list[float] = []
    model = tiny_model()
    axis_map = map_of(model.config)
    rank_in_rounds(
        model,
        axis_map,
        CALIBRATION,
        "",
        replace(axis_map.teacher, mlp=8, layers=1),
        told.append,
        Method(rounds=2),
        (RoundPhase.WIDTH, RoundPhase.DEPTH),
    )
    assert sum(told) == 4 * len(CALIBRATION)


def test_a_saved_ranking_of_several_rounds_keeps_its_orders(tmp_path: Path) -> None:
    model = tiny_model()
    axis_map = map_of(model.config)
    found = in_rounds(model, axis_map, replace(axis_map.teacher, hidden=8, mlp=8, layers=1), 2)
    found.save(tmp_path / "ranking.safetensors")
    again = Ranking.load(tmp_path / "ranking.safetensors", "a fingerprint")
    assert again is not None
    for axis, order in found.orders.items():
        assert torch.equal(again.orders[axis], order)


def test_blocks_of_layers_are_scored_once() -> None:
    model = tiny_model()
    axis_map = map_of(model.config)
    with pytest.raises(InputError, match="2 rounds with layers by block-influence were asked for"):
        rank_in_rounds(
            model,
            axis_map,
            CALIBRATION,
            "",
            axis_map.teacher,
            method=Method(rounds=2, depth=Depth.BLOCK_INFLUENCE),
        )


def test_a_turned_basis_stays_that_of_the_first_round() -> None:
    """Students are cut along its directions; neurons are scored anew on what they leave."""
    model = tiny_model(num_hidden_layers=2)
    axis_map = verified_axis_map(model.config, BasisName.PRINCIPAL)
    method, target = Method(basis=BasisName.PRINCIPAL), replace(axis_map.teacher, hidden=8, mlp=8)
    once = rank(model, axis_map, CALIBRATION, "", method=method)
    found = rank_in_rounds(model, axis_map, CALIBRATION, "", target, method=replace(method, rounds=2))
    assert once.basis is not None
    assert found.basis is not None
    assert torch.equal(found.basis.rotation, once.basis.rotation)
    assert torch.equal(found.orders[Axis.HIDDEN], once.orders[Axis.HIDDEN])
    between = architectures_between(axis_map, target, 2)[0]
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, once)
    student = extract(canonical, axis_map, once, between)
    again = rank(student, student_map(axis_map, between, range(2)), CALIBRATION, "").orders[Axis.MLP]
    for layer in range(2):
        survivors = once.orders[Axis.MLP][layer, : between.mlp]
        assert torch.equal(found.orders[Axis.MLP][layer, : between.mlp], survivors[again[layer]])


def test_rounds_score_as_the_method_says() -> None:
    """Neurons by the size of their weights and layers by the loss without them, both on the student."""
    model = tiny_model(num_hidden_layers=4)
    axis_map = map_of(model.config)
    method, target = (
        Method(width=Width.MAGNITUDE, depth=Depth.PERPLEXITY),
        axis_map.complete({Axis.LAYERS: 2}),
    )
    target = replace(target, mlp=8)
    once = rank(model, axis_map, CALIBRATION, "", method=method)
    found = rank_in_rounds(model, axis_map, CALIBRATION, "", target, method=replace(method, rounds=2))
    between = architectures_between(axis_map, target, 2)[0]
    layers = layers_kept(axis_map, once, between)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, once)
    student = extract(canonical, axis_map, once, between, layers)
    drawn = student_map(axis_map, between, layers)
    again = rank(student, drawn, CALIBRATION, "", method=method)
    order = [layers[layer] for layer in again.scores[Axis.LAYERS].argsort(descending=True).tolist()]
    assert found.scores[Axis.LAYERS].argsort(descending=True).tolist()[:3] == order
    for place, layer in enumerate(layers):
        survivors = once.orders[Axis.MLP][layer, : between.mlp]
        assert torch.equal(
            found.orders[Axis.MLP][layer, : between.mlp], survivors[again.orders[Axis.MLP][place]]
        )


def test_a_single_shot_says_that_it_is_none_of_several_rounds() -> None:
    model = tiny_model()
    with pytest.raises(AssertionError, match="those of rank_in_rounds"):
        rank(model, map_of(model.config), CALIBRATION, "", method=Method(rounds=2))
