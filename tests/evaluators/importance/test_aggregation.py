"""All nine aggregations of activations: against the formulas, under any split, and at their edges."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from transformers import PreTrainedModel

from evaluators.importance.activations import ActivationListener
from evaluators.importance.aggregation import ALL, L2_OF_MEANS, ActivationGrid, Aggregation, Variance
from evaluators.importance.collected import scores_of
from evaluators.importance.method import Method
from evaluators.importance.rank import rank, rank_all, ranking_fingerprint
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.input_error import InputError
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.reference import Grid as Values
from tests.evaluators.importance.reference import Names, aggregated, gated, reference_scores
from tests.evaluators.tiny_models import random_tokens, tiny_model

BLOCKS = 7
CALIBRATION = random_tokens(BLOCKS, 6)
FALCON_H1 = {
    "head_dim": 8,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 5,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
FAMILIES: dict[str, tuple[dict[str, Any], Names]] = {
    "qwen3": ({}, Names()),
    "gpt2": (
        {"n_inner": 24},
        Names(
            layer="h.{}",
            norms=("h.{}.ln_1", "h.{}.ln_2"),
            last_norm="ln_f",
            neurons={Axis.MLP: "h.{}.mlp.c_proj"},
            heads="h.{}.attn.c_proj",
        ),
    ),
    "mixtral": (
        {"num_local_experts": 5},
        Names(neurons={}, experts="layers.{}.mlp.experts", expert=gated),
    ),
    "falcon_h1": (
        FALCON_H1,
        Names(
            norms=("layers.{}.input_layernorm", "layers.{}.pre_ff_layernorm"),
            last_norm="final_layernorm",
            neurons={Axis.MLP: "layers.{}.feed_forward.down_proj"},
        ),
    ),
}


@cache
def teacher(family: str) -> tuple[PreTrainedModel, AxisMap]:
    model = tiny_model(family, **FAMILIES[family][0])
    return model, map_of(model.config)


@cache
def wanted(family: str, aggregation: Aggregation) -> dict[Axis, Values]:
    def aggregate(values: Values) -> Values:
        return aggregated(values, aggregation.batch.value, aggregation.sequence.value)

    return reference_scores(teacher(family)[0], CALIBRATION, FAMILIES[family][1], aggregate)


def near(found: Any, formula: Values, name: str) -> None:
    assert_allclose(found, formula, rtol=1e-4, atol=1e-6 * float(formula.max()), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@given(sizes=st.lists(st.integers(1, BLOCKS), min_size=1, max_size=BLOCKS))
@settings(max_examples=6)
def test_every_aggregation_is_the_formula_whatever_the_batches(family: str, sizes: list[int]) -> None:
    model, axis_map = teacher(family)
    listener, ends = ActivationListener(model, axis_map, ALL), np.minimum(np.cumsum(sizes), BLOCKS)
    with listener.on(), torch.no_grad():
        for batch in CALIBRATION.long().tensor_split(ends.tolist()):
            if len(batch):
                listener.read(batch)
    for aggregation in ALL:
        scores, formula = scores_of(listener, aggregation), wanted(family, aggregation)
        assert scores.keys() == formula.keys()
        for axis, values in formula.items():
            near(scores[axis], values, f"{aggregation} of {axis}")


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_one_pass_gives_the_nine_rankings_that_nine_passes_give(family: str) -> None:
    model, axis_map = teacher(family)
    rankings = rank_all(model, axis_map, CALIBRATION, "a teacher")
    assert rankings.keys() == set(ALL)
    assert len({tuple(one.orders[Axis.HIDDEN].tolist()) for one in rankings.values()}) == len(ALL)
    for aggregation, ranking in rankings.items():
        method = Method(batch=aggregation.batch, sequence=aggregation.sequence)
        key = ranking_fingerprint("a teacher", CALIBRATION, method)
        alone = rank(model, axis_map, CALIBRATION, key, method=method)
        assert (ranking.method, ranking.fingerprint) == (alone.method, alone.fingerprint)
        assert f"batch = {aggregation.batch}, sequence = {aggregation.sequence}" in ranking.method
        for axis, scores in alone.scores.items():
            assert torch.equal(ranking.scores[axis], scores)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 4)),
    ends=st.lists(st.integers(1, 9), max_size=5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_a_grid_is_that_of_the_formulas_and_of_its_parts_merged(
    shape: tuple[int, int, int], ends: list[int], seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    parts = [part for part in values.tensor_split(sorted(ends)) if len(part)]
    streamed, merged = ActivationGrid(ALL), ActivationGrid(ALL)
    for part in parts:
        streamed.add_blocks(part)
        other = ActivationGrid(ALL)
        other.add_blocks(part)
        merged.merge(other)
    merged.merge(ActivationGrid(ALL))
    for batch, sequence in ALL:
        formula = aggregated(values.double().numpy(), batch.value, sequence.value)
        for grid in (streamed, merged):
            near(grid.score(Aggregation(batch, sequence)), formula, f"{batch} of {sequence}")


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), far=st.sampled_from([0.0, 1e4, 1e8]))
@settings(max_examples=30)
def test_the_variance_keeps_its_digits_far_from_nought(sizes: list[int], far: float) -> None:
    """Σx² − (Σx)²/N has none left at 1e8; what the sum itself rounds off is 1e8 × 2⁻⁵³."""
    values = torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + far
    variance = Variance()
    for part in values.split(sizes):
        variance.add(part)
    exact = (values - far).numpy()
    assert_allclose(variance.value, exact.var(axis=0), rtol=1e-6, atol=1e-14)


def test_what_is_kept_does_not_grow_with_the_blocks() -> None:
    def kept(blocks: int) -> int:
        grid = ActivationGrid(ALL)
        for _ in range(blocks):
            grid.add_blocks(torch.rand(2, 5, 4))
        tensors = [
            v for part in grid.parts.values() for v in vars(part).values() if isinstance(v, torch.Tensor)
        ]
        assert {tensor.dtype for tensor in tensors} == {torch.float64}
        return sum(tensor.numel() for tensor in tensors)

    assert kept(1) == kept(20)


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: "-".join(one))
def test_one_block_gives_an_order_and_no_nan(aggregation: Aggregation) -> None:
    """Over a batch of one the variance is 0 for every unit, and units stay in their order."""
    model, axis_map = teacher("qwen3")
    method = Method(batch=aggregation.batch, sequence=aggregation.sequence)
    ranking = rank(model, axis_map, CALIBRATION[:1], "", method=method)
    assert all(bool(torch.isfinite(scores).all()) for scores in ranking.scores.values())
    if aggregation.batch == "var":
        assert not ranking.scores[Axis.HIDDEN].any()
        assert ranking.orders[Axis.HIDDEN].tolist() == list(range(16))
        assert ranking.orders[Axis.MLP].tolist() == [list(range(24))] * 3
    else:
        assert len(ranking.scores[Axis.MLP].unique()) > 24


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: "-".join(one))
def test_a_layer_whose_neurons_are_all_alike_keeps_their_order(aggregation: Aggregation) -> None:
    model = tiny_model()
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            weight = model.get_parameter(f"model.layers.1.mlp.{name}.weight")
            weight.copy_(weight[:1].expand_as(weight).clone())
    method = Method(batch=aggregation.batch, sequence=aggregation.sequence)
    ranking = rank(model, map_of(model.config), CALIBRATION, "", method=method)
    assert len(ranking.scores[Axis.MLP][1].unique()) == 1
    assert ranking.orders[Axis.MLP][1].tolist() == list(range(24))
    assert ranking.orders[Axis.MLP][0].tolist() != list(range(24))


def test_the_default_is_minitrons() -> None:
    assert (Method().batch, Method().sequence) == L2_OF_MEANS == ("l2", "mean")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: "-".join(one))
def test_activations_that_are_no_numbers_are_refused(aggregation: Aggregation, value: float) -> None:
    """Neurons that no layer reads on, so that theirs are the only scores which are not finite."""
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 3] = value
        model.get_parameter("model.layers.0.mlp.down_proj.weight").zero_()
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *args: torch.zeros_like(args[-1]))
    method = Method(batch=aggregation.batch, sequence=aggregation.sequence)
    with pytest.raises(InputError) as error:
        rank(model, map_of(model.config), CALIBRATION, "", method=method)
    hook.remove()
    assert str(error.value) == (
        "The teacher's activations have to be finite on the calibration set; "
        "the scores of the MLPs are not. Try --dtype float32, or another teacher."
    )
