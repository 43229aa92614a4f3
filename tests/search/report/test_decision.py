"""The first section says which model to take, what it loses, and whether the search was worth it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from search.report.decision import decide
from search.runs.summary import farthest_near
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS


def with_numbers(
    loss: float, latency_ms: float | None, other: float, other_ms: float | None
) -> dict[str, Any]:
    """The sample with these figures for the chosen model and the runner-up."""
    summary = sample_summary()
    summary["teacher"].update(loss=1.25, latency_ms=20.0, parameters=2_000_000)
    chosen, runner_up = summary["promoted"]
    chosen.update(loss=loss, latency_ms=latency_ms, parameters=1_000_000)
    runner_up.update(loss=other, latency_ms=other_ms)
    return summary


def test_the_headline_states_size_speed_and_loss() -> None:
    headline = decide(with_numbers(1.375, 10.0, 1.5, 10.0)).headline
    assert headline == (
        "It keeps 50% of the teacher\u2019s parameters, runs 2.00 times as fast and gives up 0.125 nats per "
        f"token: perplexity {math.exp(1.375):.2f} where the teacher has {math.exp(1.25):.2f}."
    )


def test_the_headline_admits_a_slower_model_and_a_gain() -> None:
    assert ", takes 1.25 times as long and gains 0.050 nats" in decide(with_numbers(1.2, 25, 2, 9)).headline
    assert "parameters and gives up" in decide(with_numbers(1.5, None, 2, None)).headline


@pytest.mark.parametrize(
    ("other", "other_ms", "sentence"),
    [
        (1.42, 11.0, "Its loss is 0.020 nats higher and it takes 10% longer."),
        (1.42, 9.0, "Its loss is 0.020 nats higher but it takes 10% less time."),
        (1.38, 11.0, "Its loss is 0.020 nats lower but it takes 10% longer."),
        (1.38, 9.0, "Its loss is 0.020 nats lower and it takes 10% less time."),
        (1.42, 10.01, "Its loss is 0.020 nats higher, at the same latency."),
        (1.42, None, "Its loss is 0.020 nats higher."),
        (1.4, None, "Its loss is the same."),
        (1.4, 9.0, "Its loss is the same but it takes 10% less time."),
        (1.4, 11.0, "Its loss is the same and it takes 10% longer."),
    ],
)
def test_why_the_runner_up_was_not_taken(other: float, other_ms: float | None, sentence: str) -> None:
    decision = decide(with_numbers(1.4, 10.0, other, other_ms))
    assert decision.runner_up is not None
    assert decision.why_not == sentence


def test_the_verdict_names_the_nearest_baseline() -> None:
    summary = sample_summary()
    summary["promoted"][0]["loss"] = 1.0
    for baseline, loss in zip(summary["baselines"], (1.3, 1.2, 1.1, 2.0), strict=True):
        baseline["loss"] = loss
    assert decide(summary).verdict == (
        "It beats all 4 baselines retrained on the same tokens; "
        "the nearest, depth only, is 0.100 nats behind."
    )


def test_the_verdict_says_so_when_the_search_did_not_win() -> None:
    summary = sample_summary()
    summary["promoted"][0]["loss"] = 1.4
    summary["baselines"][0]["loss"] = 1.35
    assert decide(summary).verdict == (
        "It does not beat every baseline: "
        "uniform shrink (\u22120.050) reached a loss as low on the same tokens."
    )


def test_baselines_with_fewer_tokens_are_named_and_not_taken_for_the_nearest() -> None:
    summary = sample_summary()
    summary["promoted"][0]["loss"] = 1.0
    for baseline, loss in zip(summary["baselines"], (1.3, 1.2, 1.1, 2.0), strict=True):
        baseline |= {"loss": loss, "short": baseline["origin"] != "uniform", "tokens": 50_000}
    decision = decide(summary)
    assert decision.verdict == (
        "It beats all 4 baselines (on a quarter of its tokens: MLP and heads only; depth only; random "
        "weights); the nearest, uniform shrink, is 0.300 nats behind."
    )
    assert [step.name for step in decision.steps if "after 50" in step.name] == [
        "depth only, after 50.0\u00a0k tokens",
        "MLP and heads only, after 50.0\u00a0k tokens",
        "random weights, after 50.0\u00a0k tokens",
    ]


def test_a_baseline_that_is_better_on_fewer_tokens_is_named() -> None:
    summary = sample_summary()
    summary["promoted"][0]["loss"] = 1.4
    summary["baselines"][0] |= {"loss": 1.35, "short": True}
    assert decide(summary).verdict == (
        "It does not beat every baseline: uniform shrink (\u22120.050) reached a loss as low."
    )


def test_without_baselines_nothing_is_claimed() -> None:
    assert "nothing can be said" in decide(VARIANTS["losses_missing"]()).verdict


def test_the_comparison_goes_from_the_lowest_loss_up() -> None:
    steps = decide(sample_summary()).steps
    assert [step.loss for step in steps] == sorted(step.loss for step in steps)
    assert [step.kind for step in steps] == ["chosen", "promoted"] + ["baseline"] * 4
    assert [step.clipped for step in steps] == [False] * 5 + [True]
    gaps = {step.gap / step.bar for step in steps if not step.clipped}
    assert max(gaps) == pytest.approx(min(gaps)), "bars are not in proportion to what they show"


def test_a_baseline_can_be_chosen() -> None:
    decision = decide(VARIANTS["baseline_wins"]())
    assert decision.student is not None
    assert decision.student["origin"] == "uniform"
    best = sample_summary()["promoted"][0]
    assert decision.verdict == (
        "It is itself a hand-made baseline, uniform shrink; "
        f"the best that the search proposed, {best['label']}, is {best['loss'] - 1.3:.3f} nats behind."
    )
    assert decision.steps[0].name == "chosen: uniform shrink"


def test_a_baseline_that_was_promoted_is_counted_once() -> None:
    summary = VARIANTS["baseline_promoted"]()
    decision = decide(summary)
    assert len(decision.steps) == 5
    assert [step.name for step in decision.steps].count("chosen: depth only") == 1
    assert decision.verdict.startswith("It is itself a hand-made baseline, depth only; ")


def test_without_a_model_the_reasons_are_counted() -> None:
    decision = decide(VARIANTS["all_failed"]())
    assert (decision.student, decision.tiles, decision.verdict) == (None, [], "")
    assert decision.failures == [("out of memory", 44)]


def test_without_retraining_the_best_candidate_is_named() -> None:
    summary = VARIANTS["one_trial"]()
    [trial] = summary["trials"]
    assert decide(summary).leader == (
        f"The lowest loss at rung 0, {trial['loss']:.3f} nats per token, has {trial['label']}."
    )


def test_what_was_not_measured_has_no_tile() -> None:
    names = [tile.name for tile in decide(VARIANTS["without_latency"]()).tiles]
    assert names == ["Parameters", "Loss", "Perplexity", "Bits per byte", "Memory"]
    assert [tile.name for tile in decide(VARIANTS["no_curves"]()).tiles] == names[:3]


@pytest.mark.parametrize(
    ("losses", "farthest"),
    [([], 1.0), ([1.1, 1.2, 1.3, 2.5], 1.3), ([1.1, 1.2, 1.3, 1.9], 1.9), ([0.8, 0.9], 0.9), ([5.0], 5.0)],
)
def test_what_lies_far_out_sets_no_scale(losses: list[float], farthest: float) -> None:
    assert farthest_near(losses, teacher=1.0) == farthest
