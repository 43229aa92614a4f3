"""The benchmarks at toy size: that they run, print what they found, and fail when a bound does not hold."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import LlamaConfig

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_passes import PartialPasses
from studies.benchmarks.__main__ import SUITES, main
from studies.benchmarks.figure import Figure, in_turns, table
from studies.benchmarks.rank import RankWork, rank_suite, without_layer
from studies.benchmarks.space import SpaceWork, space_suite
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.space.models import SMALL

TOY = SpaceWork(teacher=SMALL, budget=10_000, counted=100, built=2, cut=SMALL, repeats=1)
GOOD = Figure("things, per second, beside others", 3.0, 2.0, 1.5, 1.0)
BAD = Figure("bytes", 1.0, 4.0, 0.25, 0.5)


def test_the_suite_of_the_space() -> None:
    counting, enumeration, extraction = space_suite(TOY)
    for figure in (counting, enumeration, extraction):
        assert math.isfinite(figure.ours)
        assert min(figure.ours, figure.reference, figure.ratio) > 0
    assert (counting.bound, counting.reference) == (1.0, 1e6)
    assert counting.ratio == pytest.approx(counting.ours / 1e6)
    assert enumeration.ratio == pytest.approx(enumeration.reference / enumeration.ours)
    assert extraction.bound == 0.5
    assert extraction.ratio == pytest.approx(extraction.ours / extraction.reference)


def test_a_row_a_figure() -> None:
    head, good, bad = table([GOOD, BAD]).splitlines()
    assert head.split() == ["name", "ours", "reference", "ratio", "bound", "holds"]
    assert good == "things, per second, beside others     3          2   1.50    ≥ 1    yes"
    assert bad == "bytes                                 1          4   0.25  ≥ 0.5     NO"


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    suites = {"space": lambda: [GOOD, BAD]}
    assert main(["space", "--json"], suites) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"name": GOOD.name, "ours": 3.0, "reference": 2.0, "ratio": 1.5, "bound": 1.0, "holds": True},
        {"name": "bytes", "ours": 1.0, "reference": 4.0, "ratio": 0.25, "bound": 0.5, "holds": False},
    ]


@pytest.mark.parametrize(("figures", "status"), [([GOOD], 0), ([GOOD, BAD], 1), ([BAD], 1)])
def test_the_status_is_1_if_a_bound_does_not_hold(
    figures: list[Figure], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], {"space": lambda: figures}) == status
    assert capsys.readouterr().out == table(figures) + "\n"


def test_a_suite_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nothing"])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert set(SUITES) == {"space", "rank", "distil", "search", "memory"}


def test_both_are_timed_in_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    seconds = in_turns(lambda: calls.append("ours"), lambda: calls.append("reference"), 3)
    assert calls == ["ours", "reference"] * 4
    assert all(0 < time < 1 for time in seconds)


def test_the_suite_of_the_ranking() -> None:
    toy = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    work = RankWork(teacher=toy, blocks=2, block=8, repeats=1, large=False, real=None, part=256)
    ranking, removal, whole = rank_suite(work)
    for figure in (ranking, removal, whole):
        assert min(figure.ours, figure.reference, figure.ratio) > 0
        assert figure.ratio == pytest.approx(figure.reference / figure.ours)
    for figure in (ranking, removal):
        assert figure.name.startswith("3 layers × 16, 16 tokens: ")
    assert ranking.bound == pytest.approx(1 / 1.3)
    assert removal.bound == pytest.approx(1 / (0.5 + 2 / 3))
    assert whole.name.startswith("0M parameters, 128 tokens, 1/256 of a run: ranked in two bases")
    assert whole.bound == 2.5


@torch.no_grad()
def test_the_naive_way_lacks_a_layer_and_leaves_the_teacher_whole() -> None:
    model = tiny_model(num_hidden_layers=3)
    tokens = random_tokens(2, 6).long()
    whole, states = model(input_ids=tokens).logits, PartialPasses(model, map_of(model.config), tokens)
    less = without_layer(model, 1)
    assert len(less.get_submodule("model.layers")) == 2  # type: ignore[arg-type]
    assert torch.equal(final_states(less, tokens), states.without(1, 2))
    assert torch.equal(model(input_ids=tokens).logits, whole)
