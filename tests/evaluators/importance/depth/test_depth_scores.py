"""Rankings whose layers are scored in every way that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import PreTrainedModel

from evaluators.importance.layer_passes import PartialPasses
from evaluators.importance.layer_removal import BoundaryCosines, Cost, by_loss, removal_order, removal_ranks
from evaluators.importance.layer_scores import Judge
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import layers_kept
from space.cutting.ranking import Ranking
from space.input_error import InputError
from tests.evaluators.importance.depth import by_surgery
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_model

LAYERS = 4
CALIBRATION = random_tokens(5, 9)
_SINGLE = (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE, Depth.BENCHMARK)
METHODS = [Method(depth=depth) for depth in Depth] + [Method(depth=depth, greedy=True) for depth in _SINGLE]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def axis_map(model: PreTrainedModel) -> AxisMap:
    return map_of(model.config)


def judge(model: PreTrainedModel) -> float:
    """A benchmark that likes the first logit of a certain text."""
    with torch.no_grad():
        return float(model(input_ids=CALIBRATION[:1].long(), use_cache=False).logits[0, -1, 0])


class LossOnText:
    """A task whose cost is the loss on the calibration text, so that it has to score as perplexity does."""

    def __init__(self) -> None:
        self.batches = CALIBRATION.long().split(2)

    def __call__(self, passes: PartialPasses) -> Cost:
        return by_loss(passes)


def ranking_by(model: PreTrainedModel, method: Method) -> Ranking:
    choices = method.by_task and (method.in_blocks or method.greedy)
    scorer: Judge = LossOnText() if choices else judge
    return rank(model, map_of(model.config), CALIBRATION, "a fingerprint", method=method, judge=scorer)


@pytest.mark.parametrize(
    ("by_task", "by_text"),
    [
        (Method(depth=Depth.BENCHMARK), Method(depth=Depth.PERPLEXITY)),
        (Method(depth=Depth.BENCHMARK, greedy=True), Method(depth=Depth.PERPLEXITY, greedy=True)),
        (Method(depth=Depth.BLOCK_BENCHMARK), Method(depth=Depth.BLOCK_PERPLEXITY)),
    ],
    ids=lambda method: method.depth_words,
)
def test_a_task_scores_layers_in_the_passes_of_a_text(
    model: PreTrainedModel, by_task: Method, by_text: Method
) -> None:
    axis_map, wanted = map_of(model.config), ranking_by(model, by_text)
    told: list[float] = []
    found = rank(model, axis_map, CALIBRATION, "", told.append, by_task, judge=LossOnText())
    assert_close(found.scores[Axis.LAYERS], wanted.scores[Axis.LAYERS])
    assert (found.blocks is None) == (wanted.blocks is None)
    if found.blocks is not None and wanted.blocks is not None:
        assert_close(found.blocks, wanted.blocks)


@pytest.mark.parametrize(
    "method", [Method(depth=Depth.BLOCK_BENCHMARK), Method(depth=Depth.BENCHMARK, greedy=True)]
)
def test_generated_answers_score_single_layers_alone(model: PreTrainedModel, method: Method) -> None:
    with pytest.raises(InputError, match="by a task that is a choice between texts"):
        rank(model, map_of(model.config), CALIBRATION, "", method=method, judge=judge)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.words)
def test_only_the_layers_differ_between_methods(model: PreTrainedModel, method: Method) -> None:
    plain, ranking = ranking_by(model, Method()), ranking_by(model, method)
    assert ranking.method == method.words
    assert ranking.scores.keys() == plain.scores.keys()
    for axis in plain.scores.keys() - {Axis.LAYERS}:
        assert torch.equal(ranking.scores[axis], plain.scores[axis])
    scores = ranking.scores[Axis.LAYERS]
    assert (scores.shape, scores.dtype, len(scores.unique())) == ((LAYERS,), torch.float32, LAYERS)
    assert (ranking.blocks is not None) == (method.in_blocks)
    assert same_weights(model, tiny_model(num_hidden_layers=LAYERS))


@pytest.mark.parametrize(
    ("depth", "cost"),
    [(Depth.PERPLEXITY, by_surgery.loss), (Depth.DIVERGENCE, by_surgery.divergence)],
)
def test_scores_are_those_of_the_definitions(
    model: PreTrainedModel, depth: Depth, cost: by_surgery.Cost
) -> None:
    wanted = torch.tensor([cost(model, CALIBRATION, [layer]) for layer in range(LAYERS)])
    assert_close(ranking_by(model, Method(depth=depth)).scores[Axis.LAYERS], wanted, rtol=1e-5, atol=1e-6)
    order = by_surgery.greedy_order(model, CALIBRATION, cost)
    greedy = ranking_by(model, Method(depth=depth, greedy=True))
    assert greedy.scores[Axis.LAYERS].tolist() == [order.index(layer) for layer in range(LAYERS)]


def test_greedy_influence_is_that_of_a_teacher_that_lacks_the_layers(model: PreTrainedModel) -> None:
    left, order = list(range(LAYERS)), list[int]()
    while left:
        less = by_surgery.without(model, order)
        scores = [by_surgery.influence(less, CALIBRATION, n, n) for n in range(len(left))]
        order.append(left.pop(scores.index(min(scores))))
    scored = ranking_by(model, Method(greedy=True)).scores[Axis.LAYERS]
    assert scored.tolist() == [order.index(layer) for layer in range(LAYERS)]


def test_influence_of_blocks_is_that_of_both_ends(model: PreTrainedModel) -> None:
    ranking = ranking_by(model, Method(depth=Depth.BLOCK_INFLUENCE))
    assert ranking.blocks is not None
    for length in range(1, LAYERS):
        for start in range(LAYERS + 1 - length):
            wanted = by_surgery.influence(model, CALIBRATION, start, start + length - 1)
            assert float(ranking.blocks[length - 1, start]) == pytest.approx(wanted, rel=1e-4)
    plain = ranking_by(model, Method()).scores[Axis.LAYERS]
    assert_close(ranking.scores[Axis.LAYERS], plain, rtol=1e-4, atol=1e-6)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_chords_are_the_same_for_any_split(
    model: PreTrainedModel, axis_map: AxisMap, sizes: list[int]
) -> None:
    states = [torch.randn(sum(sizes), 3, 16, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    whole, parts = (BoundaryCosines(model, axis_map) for _ in range(2))
    whole.add(states)
    for batch in zip(*(values.split(sizes) for values in states), strict=True):
        parts.add(batch)
    assert whole.tokens == parts.tokens == 3 * sum(sizes)
    assert_close(whole.total, parts.total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", [Depth.BLOCK_INFLUENCE, Depth.BLOCK_PERPLEXITY])
def test_with_blocks_a_student_keeps_all_but_the_cheapest(
    model: PreTrainedModel, depth: Depth, tmp_path: Path
) -> None:
    axis_map, ranking = map_of(model.config), ranking_by(model, Method(depth=depth))
    blocks = ranking.blocks
    assert blocks is not None
    assert blocks[0].tolist() == ranking.scores[Axis.LAYERS].tolist()
    number = torch.arange(LAYERS)
    beyond = (number[:, None] + number >= LAYERS) | (number[:, None] == LAYERS - 1)
    assert torch.equal(blocks == torch.inf, beyond)
    for layers in range(1, LAYERS):
        student = axis_map.complete({Axis.LAYERS: layers})
        start = int(blocks[LAYERS - layers - 1].argmin())
        gone = range(start, start + LAYERS - layers)
        assert layers_kept(axis_map, ranking, student) == [n for n in range(LAYERS) if n not in gone]
    assert layers_kept(axis_map, ranking, axis_map.teacher) == list(range(LAYERS))
    ranking.save(tmp_path / "ranking.safetensors")
    again = Ranking.load(tmp_path / "ranking.safetensors", "a fingerprint")
    assert again is not None
    assert again.blocks is not None
    assert torch.equal(again.blocks, blocks)


@pytest.mark.parametrize("depth", Depth)
def test_a_teacher_of_one_layer_has_scores(depth: Depth) -> None:
    ranking = ranking_by(tiny_model(num_hidden_layers=1), Method(depth=depth))
    assert ranking.scores[Axis.LAYERS].isfinite().all()
    assert ranking.blocks is None or ranking.blocks.tolist() == [[float("inf")]]


def test_a_benchmark_counts_what_is_lost_without_a_layer(model: PreTrainedModel) -> None:
    scores = ranking_by(model, Method(depth=Depth.BENCHMARK, benchmark="a text")).scores[Axis.LAYERS]
    without = [judge(by_surgery.without(model, [layer])) for layer in range(LAYERS)]
    assert_close(scores, judge(model) - torch.tensor(without), rtol=1e-4, atol=1e-5)


def test_a_benchmark_that_generates_finds_its_cache(model: PreTrainedModel) -> None:
    """Tokens generated without a layer, with a cache, are those of a model that lacks it."""
    seen: list[list[int]] = []

    def written(model: PreTrainedModel) -> float:
        write: Any = model.generate
        text = write(CALIBRATION[:1].long(), max_new_tokens=6, do_sample=False, pad_token_id=0)
        seen.append(text[0].tolist())
        return 0.0

    rank(model, map_of(model.config), CALIBRATION, "", method=Method(depth=Depth.BENCHMARK), judge=written)
    for layer, found in enumerate(seen[1:]):
        written(by_surgery.without(model, [layer]))
        assert found == seen[-1]


def test_random_layers_follow_the_seed(model: PreTrainedModel) -> None:
    first, same, other = (
        ranking_by(model, Method(depth=Depth.RANDOM, seed=seed)).scores[Axis.LAYERS].tolist()
        for seed in (1, 1, 2)
    )
    assert first == same != other


@given(st.permutations(range(6)))
def test_the_first_to_go_ranks_lowest(wanted: list[int]) -> None:
    asked: list[list[int]] = []

    def scoring(gone: object) -> torch.Tensor:
        asked.append(list(gone))  # type: ignore[call-overload]
        return torch.tensor([float("nan") if n in asked[-1] else wanted.index(n) for n in range(6)])

    assert removal_order(6, scoring) == wanted
    assert removal_ranks(wanted).argsort().tolist() == wanted
    assert asked == [wanted[:n] for n in range(5)]


def test_of_equal_layers_the_later_goes_first() -> None:
    assert removal_order(4, lambda gone: torch.zeros(4)) == [3, 2, 1, 0]


@pytest.mark.parametrize("method", METHODS[:-3], ids=lambda method: method.words)
def test_equal_layers_keep_the_order_of_the_teacher(method: Method) -> None:
    model = tiny_model(num_hidden_layers=LAYERS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    ranking = ranking_by(model, method)
    if method.depth is not Depth.RANDOM:
        kept = layers_kept(map_of(model.config), ranking, map_of(model.config).complete({Axis.LAYERS: 2}))
        assert kept == [0, 1]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            Method(depth=Depth.BLOCK_INFLUENCE, greedy=True),
            "Layers are taken out greedily by what each of them does; the depth method is 'block-influence'. "
            "Choose influence, perplexity, divergence or a task, or leave greedy out.",
        ),
        (
            Method(depth=Depth.BENCHMARK),
            "Layers scored by a benchmark need one that is named; none is. Name a task of the benchmark.",
        ),
        (
            Method(depth=Depth.PERPLEXITY),
            "Layers scored by loss need calibration blocks of two tokens or more; the blocks have 1. "
            "Take longer blocks, or choose influence.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(method: Method, message: str) -> None:
    model = tiny_model()
    with pytest.raises(InputError) as error:
        rank(model, map_of(model.config), torch.full((1, 1), 999), "", method=method)
    assert str(error.value) == message


@pytest.mark.parametrize("depth", [Depth.PERPLEXITY, Depth.BLOCK_PERPLEXITY, Depth.DIVERGENCE])
def test_a_loss_that_is_no_number_is_refused(depth: Depth) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3] = float("nan")
    with pytest.raises(InputError) as error:
        ranking_by(model, Method(depth=depth))
    assert str(error.value) == (
        "What a teacher is worth without a layer has to be finite on the calibration set; "
        f"by {depth.value} it is not. Try --dtype float32, or another teacher."
    )
