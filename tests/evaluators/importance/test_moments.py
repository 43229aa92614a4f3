"""What repairs are made of, against the raw inputs of modules."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.moments import MomentsListener, gather_moments, rms_norms
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import Moments
from space.cutting.repair import Repair
from space.input_error import InputError
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.reference import gated, routed
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(6, 10)


def moments_of(model: PreTrainedModel) -> Moments:
    return gather_moments(model, map_of(model.config), CALIBRATION, "a fingerprint")


def raw(model: PreTrainedModel, module: str) -> Tensor:
    """(tokens, n) what a module reads, in float64."""
    read: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        for block in CALIBRATION:
            model(input_ids=block[None].long(), use_cache=False)
    hook.remove()
    return torch.cat([values.flatten(0, -2) for values in read]).double()


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("llama", ("model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.o_proj")),
        ("gpt2", ("transformer.h.{}.mlp.c_proj", "transformer.h.{}.attn.c_proj")),
    ],
)
def test_second_moments_are_those_of_the_raw_inputs(model_type: str, names: tuple[str, str]) -> None:
    model = tiny_model(model_type)
    found = moments_of(model)
    assert found.reads.keys() == {f"{name.format(layer)}.weight" for name in names for layer in range(3)}
    for name, read in found.reads.items():
        inputs = raw(model, name.removesuffix(".weight"))
        assert_allclose(read.second, inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-6)
        assert read.place == (0 if model_type == "gpt2" else 1)


def test_experts_are_heard_one_by_one() -> None:
    model = tiny_model("mixtral", num_local_experts=5)
    read = moments_of(model).reads["model.layers.1.mlp.experts.down_proj"]
    assert read.second.shape == (5, 24, 24)
    experts = model.get_submodule("model.layers.1.mlp.experts")
    inputs: dict[int, list[Tensor]] = defaultdict(list)
    for states, chosen in routed(model, CALIBRATION, experts):
        for number in range(5):
            inputs[number].append(gated(states[(chosen == number).any(-1)], number, experts))
    for number in range(5):
        values = torch.cat(inputs[number]).double()
        assert_allclose(read.second[number], values.T @ values / len(values), rtol=1e-4, atol=1e-6)


def test_energies_are_those_of_the_unit_stream() -> None:
    model = tiny_model("llama")
    found = moments_of(model).energies
    modules = [f"layers.{i}.{name}_layernorm" for i in range(3) for name in ("input", "post_attention")]
    assert found.keys() == {f"model.{module}.weight" for module in (*modules, "norm")}
    for name, energy in found.items():
        states = raw(model, name.removesuffix(".weight"))
        unit = states / states.square().mean(-1, keepdim=True).sqrt()
        assert_allclose(energy.mean, unit.square().mean(0), rtol=1e-5)
        assert float(energy.mean.sum()) == pytest.approx(16, rel=1e-5)


@pytest.mark.parametrize(
    ("model_type", "offsets"), [("llama", {0.0}), ("gemma2", {1.0}), ("qwen3", {0.0}), ("gpt2", set())]
)
def test_norms_are_known_by_what_they_do(model_type: str, offsets: set[float]) -> None:
    """Gemma adds 1 to its weights; GPT-2's norms subtract a mean and are none of them."""
    model = tiny_model(model_type)
    found = rms_norms(model, map_of(model.config))
    assert set(found.values()) == offsets
    assert not [name for name in found if "q_norm" in name or "k_norm" in name]


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_any_split_into_batches_gives_the_same(sizes: list[int]) -> None:
    model = tiny_model("mixtral", num_local_experts=4)
    axis_map, calibration = map_of(model.config), random_tokens(sum(sizes), 5).long()
    whole, parts = (MomentsListener(model, axis_map) for _ in range(2))
    with torch.no_grad():
        with whole.on():
            final_states(model, calibration)
        with parts.on():
            for batch in calibration.split(sizes):
                final_states(model, batch)
    one, other = whole.moments(""), parts.moments("")
    assert one.reads.keys() == other.reads.keys()
    for name, read in one.reads.items():
        assert_allclose(read.second, other.reads[name].second, rtol=1e-4, atol=1e-6)
    for name, energy in one.energies.items():
        assert_allclose(energy.mean, other.energies[name].mean, rtol=1e-5)


def test_the_pass_of_the_ranking_serves_too() -> None:
    model = tiny_model("mixtral")
    axis_map = map_of(model.config)
    listener = MomentsListener(model, axis_map, tokens=CALIBRATION.numel())
    with listener.on():
        ranking = rank(model, axis_map, CALIBRATION, "")
    beside, apart = listener.moments(""), moments_of(model)
    for name, read in apart.reads.items():
        assert_allclose(beside.reads[name].second, read.second, rtol=1e-6)
    alone = rank(model, axis_map, CALIBRATION, "")
    for axis, scores in alone.scores.items():
        assert torch.equal(ranking.scores[axis], scores)


def test_nothing_is_left_in_the_teacher() -> None:
    model = tiny_model("mixtral")
    before = model.config._experts_implementation
    moments_of(model)
    assert model.config._experts_implementation == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


class TestTheFile:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        wanted = moments_of(tiny_model("gemma2"))
        wanted.save(tmp_path / "moments.safetensors")
        found = Moments.load(tmp_path / "moments.safetensors", "a fingerprint")
        assert found is not None
        for name, read in wanted.reads.items():
            assert torch.equal(found.reads[name].second, read.second)
            assert found.reads[name].place == read.place
        for name, energy in wanted.energies.items():
            assert torch.equal(found.energies[name].mean, energy.mean)
            assert found.energies[name].offset == 1.0

    def test_another_teachers_or_a_torn_one_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "moments.safetensors"
        assert Moments.load(path, "a fingerprint") is None
        moments_of(tiny_model()).save(path)
        assert Moments.load(path, "another") is None
        path.write_bytes(path.read_bytes()[:100])
        assert Moments.load(path, "a fingerprint") is None


def test_inputs_that_are_no_numbers_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3] = float("nan")
    with pytest.raises(InputError) as error:
        moments_of(model)
    assert str(error.value) == (
        "The teacher's activations have to be finite on the calibration set; "
        "what model.layers.1.mlp.down_proj.weight reads is not. Try --dtype float32, or another teacher."
    )


@torch.no_grad()
def test_a_layer_cut_along_its_neurons_writes_what_is_nearest() -> None:
    """End to end: the student's MLP, fed the teacher's own inputs, errs as little as least squares can."""
    model = tiny_model(num_hidden_layers=1)
    axis_map = map_of(model.config)
    ranking, moments = rank(model, axis_map, CALIBRATION, ""), moments_of(model)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    few = axis_map.complete({Axis.MLP: 8})
    inputs = raw(model, "model.layers.0.mlp").float()
    order = ranking.orders[Axis.HIDDEN]
    wanted = model.get_submodule("model.layers.0.mlp")(inputs)[:, order]
    repair = Repair(least_squares=True, moments=moments.sorted_by(axis_map, ranking), ridge=1e-4)

    def off(student: PreTrainedModel) -> float:
        mlp: nn.Module = student.get_submodule("model.layers.0.mlp")
        return float((mlp(inputs[:, order]) - wanted).square().mean())

    before = off(extract(canonical, axis_map, ranking, few))
    after = off(extract(canonical, axis_map, ranking, few, repair=repair))
    neurons = raw(model, "model.layers.0.mlp.down_proj")[:, ranking.orders[Axis.MLP][0, :8]]
    best = torch.linalg.lstsq(neurons, wanted.double()).solution
    least = float((neurons @ best - wanted.double()).square().mean())
    assert least * 0.999 <= after <= least * 1.01
    assert after < 0.95 * before


def test_a_single_neuron_is_told_from_what_is_beside_it() -> None:
    """Its stride is that of the next dimension, so that only the length tells what is read."""
    model = tiny_model("mixtral", intermediate_size=1)
    read = moments_of(model).reads["model.layers.1.mlp.experts.down_proj"]
    assert (read.place, read.second.shape) == (2, (8, 1, 1))
    scores = rank(model, map_of(model.config), CALIBRATION, "").scores[Axis.EXPERT_MLP]
    assert scores.shape == (3, 8, 1)
    assert float(scores.sum()) > 0
