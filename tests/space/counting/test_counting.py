"""Counts against built models, PyTorch's own counter of operations, and the library's cache."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from evaluators.huggingface.caching import cache_argument, cache_of
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import build
from space.axes.polynomial import attention_windows
from space.counting.budget import Budget, Measure
from space.counting.counting import (
    active_polynomial,
    budget_polynomial,
    cache_polynomial,
    decode_flops,
    matrix_polynomial,
    non_embedding_polynomial,
    parameter_polynomial,
    prefill_flops,
)
from space.cutting.extraction import student_config
from space.cutting.ranking import kept_layers
from space.discovery.discovery import discover
from space.verification.contract import one_expert_at_a_time
from space.verification.verification import verified_axis_map
from tests.contracts.tiny import each
from tests.flop_counts import flops_of
from tests.space.maps import map_of, tiny_config_of, tiny_map
from tests.space.models import SMALL

#: Windows, transposed matrices, one KV head for all, experts, compressed keys and values, heads of own sizes.
TYPES = each(
    "llama", "gemma2", "gpt2", "falcon", "mixtral", "minicpm3", "gemma4_text", also_slow=("gemma4_text",)
)
WIDTH_4B = Architecture(hidden=3072, mlp=9216, heads=32, kv_heads=8, layers=32)


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("qwen3", 8_190_735_360, 8_190_735_360),
        ("llama", 8_030_261_248, 8_030_261_248),
        ("mixtral", 46_702_792_704, 12_879_925_248),
        ("qwen2_moe", 14_315_784_192, 2_689_173_504),
        ("small", 18_984, 18_984),
    ],
)
def test_known_sizes(name: str, parameters: int, active: int) -> None:
    axis_map = map_of(name)
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == parameters
    assert active_polynomial(axis_map).of(axis_map.teacher) == active


@pytest.mark.parametrize(
    ("published", "billions"),
    [
        (Architecture(6144, 24_576, 48, 8, 32), "15.63"),
        (Architecture(4096, 16_384, 48, 8, 32), "8.27"),
        (Architecture(3072, 9216, 24, 8, 32), "4.19"),
    ],
)
def test_the_shapes_of_the_minitron_paper(published: Architecture, billions: str) -> None:
    assert f"{parameter_polynomial(map_of('nemotron')).of(published) / 1e9:.2f}" == billions


def test_a_student_is_counted_by_the_formula_of_its_class() -> None:
    a = WIDTH_4B
    layer = (
        2 * a.hidden * a.heads * 128 + 2 * a.hidden * a.kv_heads * 128 + 3 * a.hidden * a.mlp + 2 * a.hidden
    )
    layers = a.layers * layer + a.hidden
    assert parameter_polynomial(map_of("llama")).of(a) == 2 * 128256 * a.hidden + layers
    assert non_embedding_polynomial(map_of("llama")).of(a) == layers


@pytest.mark.parametrize("model_type", [*TYPES, "qwen2_moe"])
def test_built_students_have_what_is_counted(model_type: str) -> None:
    """Half of every axis, and any number of layers; of Qwen2-MoE two kinds, with experts and without."""
    axis_map = tiny_map(model_type)
    steps = {coupling.of: coupling.factor.denominator for coupling in axis_map.couplings}
    sizes = {axis: axis_map.teacher[axis] // 2 for axis in axis_map.free}
    sizes = {axis: size - size % steps.get(axis, 1) for axis, size in sizes.items()}
    student = axis_map.complete(sizes)
    scores = torch.rand(axis_map.teacher.layers, generator=torch.Generator().manual_seed(0))
    fewest = 1 if Axis.LAYERS in axis_map.free else axis_map.teacher.layers
    for layers in range(fewest, axis_map.teacher.layers + 1):
        sized = replace(student, layers=layers)
        model = build(student_config(axis_map, sized, kept_layers(scores, layers, axis_map.kinds)))
        assert parameter_polynomial(axis_map).of(sized) == model.num_parameters()
        lookups = {
            id(p): p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        }
        lookups |= {id(p): p.numel() for p in model.get_output_embeddings().parameters()}
        bare = model.num_parameters() - sum(lookups.values())
        assert non_embedding_polynomial(axis_map).of(sized) == bare


def test_the_embeddings_of_positions_are_embeddings() -> None:
    axis_map = verified_axis_map(GPT2Config())
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == 124_439_808
    assert non_embedding_polynomial(axis_map).of(axis_map.teacher) == 124_439_808 - (50_257 + 1024) * 768


class TestMatrices:
    """Small: hidden 24, MLP 44, 4 heads and 2 KV heads of 8, 3 layers, vocabulary 50."""

    LAYERS = 3 * (2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 44)

    def test_an_embedding_is_looked_up_and_a_head_multiplied_with(self) -> None:
        axis_map = map_of("small")
        assert matrix_polynomial(axis_map).of(axis_map.teacher) == self.LAYERS + 50 * 24

    def test_a_tied_embedding_is_the_head(self) -> None:
        axis_map = discover(LlamaConfig(**SMALL.to_dict() | {"tie_word_embeddings": True})).axis_map
        assert matrix_polynomial(axis_map).of(axis_map.teacher) == self.LAYERS + 50 * 24
        bare = parameter_polynomial(axis_map).of(axis_map.teacher) - 50 * 24
        assert non_embedding_polynomial(axis_map).of(axis_map.teacher) == bare

    def test_biases_and_norms_are_no_matrices(self) -> None:
        changes = {"attention_bias": True, "mlp_bias": True}
        axis_map = discover(LlamaConfig(**SMALL.to_dict() | changes)).axis_map
        assert matrix_polynomial(axis_map).of(axis_map.teacher) == self.LAYERS + 50 * 24


@cache
def tiny_model(model_type: str) -> PreTrainedModel:
    """With attention written as products, which PyTorch counts on any device."""
    torch.manual_seed(0)
    config = tiny_config_of(model_type)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    one_expert_at_a_time(model)
    model.eval()
    return model


def tokens_of(model_type: str, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(4, tiny_config_of(model_type).vocab_size, (1, number), generator=generator)


@pytest.mark.parametrize("model_type", TYPES)
def test_reading_token_by_token_is_what_torch_counts(model_type: str) -> None:
    """To the last product, at each position; so the mean over a prompt is that of its positions."""
    model, axis_map, tokens = tiny_model(model_type), tiny_map(model_type), tokens_of(model_type, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        argument, cached, totals = cache_argument(model), None, [0]
        for place in range(tokens.shape[1]):
            one = tokens[:, place : place + 1]
            cached = cache_of(model(input_ids=one, use_cache=True, **{argument: cached}))
            totals.append(flops_of(counter))
    steps = [after - before for before, after in itertools.pairwise(totals)]
    assert steps == [decode_flops(axis_map, context).of(axis_map.teacher) for context in range(8)]
    if model_type != "minicpm3":  # which expands what it compressed once when it reads a whole prompt
        assert prefill_flops(axis_map, 8).of(axis_map.teacher) == sum(steps) // 8


@pytest.mark.parametrize("model_type", TYPES)
def test_the_cache_is_as_large_as_the_library_s(model_type: str) -> None:
    model, axis_map, sizes = tiny_model(model_type), tiny_map(model_type), []
    for number in range(1, 9):
        with torch.no_grad():
            layers = cache_of(model(input_ids=tokens_of(model_type, number), use_cache=True)).layers
        sizes.append(sum(values.numel() for layer in layers for values in (layer.keys, layer.values)))
    assert sizes == [cache_polynomial(axis_map, number).of(axis_map.teacher) for number in range(1, 9)]
    assert sizes[0] == cache_polynomial(axis_map).of(axis_map.teacher)


def test_a_student_s_windows_are_those_of_the_layers_it_keeps() -> None:
    """Of Gemma's layers of one shape, every other one sees a window of five."""
    axis_map = tiny_map("gemma2")
    near = [layer for layer, window in enumerate(attention_windows(axis_map)) if window == 5]
    far = [layer for layer, window in enumerate(attention_windows(axis_map)) if window is None]
    assert near
    assert far
    student = replace(axis_map.teacher, layers=1)
    with_window, without, on_average = (
        (cache_polynomial(axis_map, 20, kept).of(student), decode_flops(axis_map, 20, kept).of(student))
        for kept in (near[:1], far[:1], None)
    )
    assert with_window[0] * 20 == without[0] * 4, "a window of five keeps four tokens"
    assert all(
        low < middle < high for low, middle, high in zip(with_window, on_average, without, strict=True)
    )


def test_llama_3_1_8b() -> None:
    """128 KiB of cache a token in bfloat16; all but embeddings and norms are multiplied with."""
    axis_map = map_of("llama")
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 4096 * 128_256
    assert matrix_polynomial(axis_map).of(axis_map.teacher) == matrices == 7_504_658_432
    assert decode_flops(axis_map, 0).of(axis_map.teacher) == 15_009_316_864 + 524_288
    assert decode_flops(axis_map, 8191).of(axis_map.teacher) == 19_304_284_160
    assert prefill_flops(axis_map, 8191).of(axis_map.teacher) == 15_009_316_864 + 524_288 * 4096
    assert cache_polynomial(axis_map).of(axis_map.teacher) == 65_536
    assert cache_polynomial(axis_map).of(WIDTH_4B) == 65_536
    assert cache_polynomial(axis_map, 8192).of(axis_map.teacher) == 2**29


@pytest.mark.parametrize(
    ("measure", "amount"),
    [
        (Measure.TOTAL, 8_030_261_248),
        (Measure.NON_EMBEDDING, 8_030_261_248 - 2 * 4096 * 128_256),
        (Measure.ACTIVE, 8_030_261_248),
        (Measure.WEIGHTS, 16_060_522_496),
        (Measure.KV_CACHE, 131_072),
    ],
)
def test_what_a_budget_measures(measure: Measure, amount: int) -> None:
    axis_map = map_of("llama")
    assert budget_polynomial(axis_map, Budget(1, 0.02, measure)).of(axis_map.teacher) == amount


def test_single_precision_takes_twice_the_bytes() -> None:
    axis_map = map_of("llama")
    budget = Budget(1, 0.02, Measure.KV_CACHE, value_bytes=4)
    assert budget_polynomial(axis_map, budget).of(axis_map.teacher) == 262_144
