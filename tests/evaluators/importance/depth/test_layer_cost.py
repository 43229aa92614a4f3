"""What scoring the layers takes: foretold, told while it is done, and on how much of the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from evaluators.importance import layer_scores as layer_scores_module
from evaluators.importance.layer_cost import forward_passes, head_share, scored_apart
from evaluators.importance.layer_scores import LayerScores, layer_sample, layers_fingerprint
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank, ranking_fingerprint, score_layers
from space.axes.architecture import Axis
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(6, 9)
APART = [Method(depth=depth) for depth in (Depth.PERPLEXITY, Depth.DIVERGENCE, Depth.BLOCK_PERPLEXITY)]
APART += [Method(depth=depth, greedy=True) for depth in (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE)]
APART += [Method(depth=Depth.BENCHMARK)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=4)


@pytest.mark.parametrize("method", APART, ids=lambda method: method.depth_words)
def test_what_is_foretold_is_told(model: PreTrainedModel, method: Method) -> None:
    told: list[float] = []
    found = score_layers(
        model, map_of(model.config), CALIBRATION, method, told.append, judge=lambda model: 0.0
    )
    assert len(found.layers) == 4
    assert sum(told) == pytest.approx(6 * forward_passes(map_of(model.config), method))
    assert len(told) > 2, "progress moves"


def test_losses_take_half_the_layers_and_every_head(model: PreTrainedModel) -> None:
    axis_map = map_of(model.config)
    head = head_share(axis_map)
    assert 0 < head < 1
    passes = forward_passes(axis_map, Method(depth=Depth.PERPLEXITY))
    assert passes == pytest.approx((1 - head) * (1 + (3 + 2 + 1 + 0) / 4) + 4 * head)
    assert forward_passes(axis_map, Method()) == forward_passes(axis_map, Method(depth=Depth.RANDOM)) == 0
    assert scored_apart(Method(depth=Depth.RANDOM))
    assert not scored_apart(Method(depth=Depth.BLOCK_INFLUENCE))


@given(blocks=st.integers(0, 40), block=st.integers(1, 12), tokens=st.integers(1, 200))
def test_the_sample_is_spread_over_the_text(blocks: int, block: int, tokens: int) -> None:
    calibration = torch.arange(blocks)[:, None].expand(blocks, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_scores_module, "LAYER_TOKENS", tokens)
        places = layer_sample(calibration)[:, :1].flatten().tolist()
    assert len(places) == min(blocks, -(-tokens // block))
    assert places == sorted(set(places)), "each block once"
    ends = [*places[1:], blocks] if places else []
    gaps = [after - before for before, after in zip(places, ends, strict=True)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_layers_are_ranked_on_the_sample_alone(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, axis_map = Method(depth=Depth.PERPLEXITY), map_of(model.config)
    monkeypatch.setattr(layer_scores_module, "LAYER_TOKENS", 18)
    found = rank(model, axis_map, CALIBRATION, "", method=method)
    few = rank(model, axis_map, CALIBRATION[[0, 3]], "", method=method)
    whole = rank(model, axis_map, CALIBRATION, "")
    assert torch.equal(found.scores[Axis.LAYERS], few.scores[Axis.LAYERS])
    assert torch.equal(found.scores[Axis.MLP], whole.scores[Axis.MLP])


def test_products_in_bfloat16_change_scores_a_little(model: PreTrainedModel) -> None:
    axis_map = map_of(model.config)
    for depth in (Depth.INFLUENCE, Depth.BLOCK_INFLUENCE, Depth.PERPLEXITY):
        exact, rounded = (
            rank(model, axis_map, CALIBRATION, "", method=Method(depth=depth, bfloat16=half)).scores
            for half in (False, True)
        )
        for axis, scores in exact.items():
            assert not torch.equal(rounded[axis], scores), "products were rounded"
            torch.testing.assert_close(rounded[axis], scores, rtol=0.05, atol=1e-3)


def test_scores_are_kept_until_something_changes(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, method = tmp_path / "layers.safetensors", Method(depth=Depth.BLOCK_PERPLEXITY)
    scores = score_layers(model, map_of(model.config), CALIBRATION, method)
    key = layers_fingerprint("t", CALIBRATION, method)
    scores.save(path, key)
    loaded = LayerScores.load(path, key)
    assert loaded is not None
    assert loaded.blocks is not None
    assert scores.blocks is not None
    assert torch.equal(loaded.layers, scores.layers)
    assert torch.equal(loaded.blocks, scores.blocks)
    assert layers_fingerprint("t", CALIBRATION, Method(depth=method.depth, width=Method().width)) == key
    changed = [
        layers_fingerprint("u", CALIBRATION, method),
        layers_fingerprint("t", CALIBRATION[1:], method),
        layers_fingerprint("t", CALIBRATION, Method(depth=Depth.PERPLEXITY)),
        layers_fingerprint("t", CALIBRATION, Method(depth=method.depth, bfloat16=True)),
    ]
    assert len({key, *changed}) == 5
    assert all(LayerScores.load(path, other) is None for other in changed)
    before = ranking_fingerprint("t", CALIBRATION, method)
    monkeypatch.setattr(layer_scores_module, "LAYER_TOKENS", 9)
    assert ranking_fingerprint("t", CALIBRATION, method) != before
    path.write_bytes(b"damaged")
    assert LayerScores.load(path, key) is None
