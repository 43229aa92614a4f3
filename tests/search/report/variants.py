"""Summaries at the edges of what a run can write; each follows the schema."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.search.report.sample import sample_summary

Summary = dict[str, Any]


def forecast_for(summary: Summary, *labels: str) -> Summary:
    """The forecast of a summary for these candidates alone, none of them retrained."""
    told = [one | {"outcome": None} for one in summary["forecast"]["candidates"] if one["label"] in labels]
    nobody = {"held": 0, "outcomes": 0, "absolute_error": None}
    return {**summary["forecast"], "candidates": told, **nobody}


def one_trial() -> Summary:
    """A run that was told to score one candidate and retrain nothing."""
    summary = sample_summary()
    trial = summary["trials"][3]
    summary.update(trials=[trial], pareto=[trial["label"]], promoted=[], chosen=None, baselines=[])
    summary.update(rank_correlation=[], rungs=[{"rung": 0, "tokens": 0}])
    return summary | {"forecast": forecast_for(summary, trial["label"])}


def one_model() -> Summary:
    """One candidate, retrained, with no baseline to stand beside."""
    summary = sample_summary()
    student = summary["promoted"][0]
    trials = [trial for trial in summary["trials"] if trial["label"] == student["label"]]
    summary.update(trials=trials, pareto=[student["label"]], promoted=[student], baselines=[])
    nothing = {"kendall_tau": None, "regret": None, "candidates": 1}
    summary.update(rank_correlation=[{"from": "rung 0", "to": "rung 1", **nothing}])
    forecast = forecast_for(summary, student["label"])
    [told] = forecast["candidates"]
    told["outcome"] = student["loss"]
    off = abs(told["loss"] - student["loss"])
    held = int(told["low"] <= student["loss"] <= told["high"])
    return summary | {"forecast": forecast | {"held": held, "outcomes": 1, "absolute_error": off}}


def nothing_evaluated() -> Summary:
    """A run without a single trial."""
    summary = one_trial()
    return summary | {"trials": [], "pareto": [], "rungs": [], "forecast": forecast_for(summary)}


def all_failed() -> Summary:
    """Every candidate and every baseline failed."""
    summary = sample_summary()
    for trial in summary["trials"]:
        trial.update(state="failed", loss=None, latency_ms=None, objectives={}, failure="out of memory")
    for baseline in summary["baselines"]:
        baseline.update(loss=None, bits_per_byte=None, failure="out of memory", curve=[], objectives={})
    nothing = {"kendall_tau": None, "regret": None, "candidates": 0}
    pairs = [pair | nothing for pair in summary["rank_correlation"]]
    summary["forecast"] = forecast_for(summary)
    return summary | {"pareto": [], "promoted": [], "chosen": None, "rank_correlation": pairs}


def losses_missing() -> Summary:
    """One promoted model and all baselines were not retrained to the end."""
    summary = sample_summary()
    for entry in [summary["promoted"][1], *summary["baselines"]]:
        entry.update(loss=None, loss_after_pruning=None, loss_after_short_distillation=None)
        entry.update(bits_per_byte=None, latency_ms=None, failure="the loss is not finite (nan)", curve=[])
    return summary


def without_latency() -> Summary:
    """Loss and memory were the objectives; latency was never measured."""
    summary = sample_summary()
    summary["objectives"] = [{"name": "loss", "unit": "nats/token"}, {"name": "memory", "unit": "bytes"}]
    summary["teacher"]["latency_ms"] = None
    for entry in [*summary["trials"], *summary["promoted"], *summary["baselines"]]:
        entry["latency_ms"] = None
        if entry["loss"] is not None:
            entry["objectives"] = {"loss": entry["loss"], "memory": 4.2 * entry["parameters"]}
    return summary


def loss_alone() -> Summary:
    """Loss was the only objective, so it is drawn against the parameters; the rate was given."""
    summary = without_latency()
    for entry in [*summary["trials"], *summary["promoted"], *summary["baselines"]]:
        entry["objectives"].pop("memory", None)
    rates: Summary = {"peak": 3e-4, "factor": None, "tests": []}
    return summary | {"objectives": [{"name": "loss", "unit": "nats/token"}], "rates": rates}


def baseline_wins() -> Summary:
    """The chosen model is the uniform shrink, and its weights were not kept."""
    summary = sample_summary()
    summary["baselines"][0]["loss"] = 1.3
    summary["chosen"] = {"label": summary["baselines"][0]["label"], "reason": "It has the lowest loss."}
    return summary


def baseline_promoted() -> Summary:
    """The depth baseline was promoted and chosen, so it stands in both lists."""
    summary = sample_summary()
    depth = next(entry for entry in summary["baselines"] if entry["origin"] == "depth")
    summary["promoted"][1] = copy.deepcopy(depth) | {"path": f"models/02-{depth['label']}"}
    summary["chosen"] = {"label": depth["label"], "reason": "it is the fastest"}
    return summary


def better_than_the_teacher() -> Summary:
    """The student's loss is below the teacher's."""
    summary = sample_summary()
    summary["promoted"][0]["loss"] = 1.1
    return summary


def no_curves() -> Summary:
    """Retraining wrote no learning curves and no size was measured but the loss."""
    summary = sample_summary()
    summary["teacher"].update(bits_per_byte=None, latency_ms=None, memory_bytes=None)
    for entry in [*summary["promoted"], *summary["baselines"]]:
        entry.update(curve=[], bits_per_byte=None, latency_ms=None)
    return summary


def large_numbers() -> Summary:
    """Billions of parameters, and losses beyond reading as perplexity."""
    summary = sample_summary()
    summary["tokens"]["total"] = 94 * 10**9
    summary["teacher"]["parameters"] = 15_630_000_000
    summary["seconds"]["total"] = 3e6
    for entry in [*summary["promoted"], *summary["trials"]]:
        entry["parameters"] = 8_190_735_360
    summary["baselines"][1]["loss"] = 900.0
    return summary


def everything_asked() -> Summary:
    """A corrected teacher with phases, a mixed loss with states, sampled targets, benchmarks and a note."""
    summary = sample_summary()
    summary["distillation"] = {
        "loss": "0.5*forward-kl+0.5*cross-entropy at temperature 2",
        "states": ["late", "embedding"],
        "search": "nested",
        "schedule": "wsd",
        "optimizer": "adamw-8bit",
        "targets": {
            "short_distillation": {"form": "sampled", "tokens": 98_304, "bytes": 14_745_600},
            "retraining": {"form": "live", "tokens": 1_966_080, "bytes": 0},
        },
    }
    summary["rates"] = rates_of_two_bases()
    summary["teacher"]["phases"] = ["org/teacher@stage1", "org/teacher@stage2"]
    summary["teacher"]["passed_over"] = ["org/larger"]
    summary["teacher"]["taught_by"] = "org/original"
    summary["teacher"]["correction"] = {
        "tokens": 500_000,
        "seconds": 12.5,
        "peak_rate": 6e-4,
        "loss_before": 1.402,
        "loss_after": summary["teacher"]["loss"],
        "curve": [[250_000, 1.3], [500_000, 1.268]],
        "path": "teacher",
        "note": None,
    }
    summary["tokens"]["teacher_correction"] = 500_000
    students = [*summary["promoted"], *summary["baselines"][:-1]]
    for place, model in enumerate([summary["teacher"], *students]):
        model["benchmarks"] = {"quiz": score("acc", 0.75 - 0.05 * place, 0.021, True)}
        model["benchmarks"]["riddle"] = score("word_perplexity", 40.0 + place, None, False)
    failed = score(None, None, None, None) | {"failure": "the examples are out of reach"}
    summary["promoted"][1]["benchmarks"]["riddle"] = failed
    summary["promoted"][0]["note"] = "ended early, the validation loss rose twice"
    return summary


def rates_of_two_bases() -> Summary:
    """Range tests in which a training diverged, and in which none helped."""
    [one] = sample_summary()["rates"]["tests"]
    nothing: Summary = {"factor": 1 / 128, "improves": False, "loss_before": 2.0}
    worse = [[2.7e-3 * 2.0**power, 2.1 + 2.0**power / 10] for power in range(-6, 1)]
    tests = [
        {**one, "factor": 0.25, "curve": [[3.375e-4, 2.4], [6.75e-4, 2.2], [1.35e-3, 2.3], [2.7e-3, None]]},
        {**one, **nothing, "basis": "weighted", "curve": worse},
    ]
    return {"peak": None, "factor": 0.25, "tests": tests}


def score(metric: str | None, value: float | None, error: float | None, higher: bool | None) -> Summary:
    """One result on a task."""
    return {"metric": metric, "value": value, "error": error, "higher_is_better": higher, "failure": None}


VARIANTS: dict[str, Callable[[], Summary]] = {
    variant.__name__: variant
    for variant in (
        sample_summary,
        one_trial,
        one_model,
        nothing_evaluated,
        all_failed,
        losses_missing,
        without_latency,
        loss_alone,
        baseline_wins,
        baseline_promoted,
        better_than_the_teacher,
        no_curves,
        large_numbers,
        everything_asked,
    )
}
