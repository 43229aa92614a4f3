"""A summary as a run on a small teacher would write it, with invented figures of a plausible shape."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import torch

from search.report import RankingView
from space.cutting.ranking import profile_of
from tests.search.report.looks import ENERGY, PROMPTS, breakdown, continuations

TEACHER_LAYERS = 8
TEACHER = {
    "hidden": 160,
    "mlp": 448,
    "heads": 8,
    "kv_heads": 4,
    "layers": TEACHER_LAYERS,
    "kept_layers": list(range(TEACHER_LAYERS)),
}
TEACHER_LOSS, TEACHER_MS = 1.268, 21.4
VOCABULARY, HEAD_SIZE, BUDGET = 2048, 20, 1_330_000
RUNG_TOKENS = [0, 98_304]
RETRAIN_TOKENS = 1_966_080
BYTES_PER_TOKEN = 3.1
#: A range test in which the rule's rate is too high.
RATES = {
    "peak": None,
    "factor": 0.5,
    "tests": [
        {
            "basis": "coordinate",
            "label": "h112-m296-q6-kv2-l7",
            "parameters": 1_328_000,
            "rule": 2.7e-3,
            "factor": 0.5,
            "improves": True,
            "loss_before": 3.912,
            "tokens": 65_536,
            "curve": [[6.75e-4, 2.214], [1.35e-3, 2.148], [2.7e-3, 2.301]],
        }
    ],
}
TARGETS = {"form": "hidden", "tokens": RETRAIN_TOKENS, "bytes": 320 * RETRAIN_TOKENS}

_SHAPES = [
    # hidden, heads, kv_heads, layers, origin; the MLP is solved from the budget
    (112, 6, 2, 7, "uniform"),
    (160, 6, 4, 8, "mlp-heads"),
    (160, 8, 4, 4, "depth"),
    *[
        (hidden, heads, kv_heads, layers, "search")
        for hidden, heads, kv_heads, layers in [
            (128, 6, 2, 6), (128, 8, 4, 6), (144, 6, 2, 6), (128, 4, 2, 8), (112, 8, 4, 8),
            (144, 8, 4, 5), (96, 8, 4, 8), (128, 6, 2, 7), (144, 4, 2, 6), (112, 6, 2, 8),
            (128, 8, 2, 7), (160, 4, 2, 5), (96, 6, 2, 8), (144, 8, 2, 5), (128, 4, 2, 7),
            (112, 4, 2, 8), (160, 6, 2, 5), (112, 8, 2, 7), (144, 6, 2, 7), (128, 8, 4, 7),
            (96, 4, 2, 7),
        ]
    ],
]  # fmt: skip


def sample_summary() -> dict[str, Any]:
    """24 trials at rung 0 (one failed), 16 at rung 1, two promoted, three baselines and random weights."""
    draw = random.Random(7)
    candidates = [_candidate(*shape, draw) for shape in _SHAPES]
    zero = [_trial(0, number, candidate, draw) for number, candidate in enumerate(candidates)]
    zero[-1].update(
        state="failed",
        loss=None,
        latency_ms=None,
        objectives={},
        failure="the loss is not finite (nan) after 3 of 48 blocks",
    )
    alive = sorted(zip(zero[:-1], candidates[:-1], strict=True), key=lambda pair: float(pair[0]["loss"]))
    one = [_trial(1, number, candidate, draw) for number, (_, candidate) in enumerate(alive[:13])]
    hand_made = [candidate for candidate in candidates if candidate["origin"] != "search"]
    missing = [
        candidate for candidate in hand_made if candidate["label"] not in {trial["label"] for trial in one}
    ]
    one += [_trial(1, len(one) + number, candidate, draw) for number, candidate in enumerate(missing)]
    searched = sorted((trial for trial in one if trial["origin"] == "search"), key=lambda t: float(t["loss"]))
    by_label = {candidate["label"]: candidate for candidate in candidates}
    front = _front(one)
    promoted = [
        _student(by_label[trial["label"]], f"models/{place:02d}-{trial['label']}", draw)
        for place, trial in enumerate(searched[:2], start=1)
    ]
    promoted.sort(key=lambda student: float(student["loss"]))
    baselines = [_student(candidate, None, draw) for candidate in hand_made]
    baselines.append(_from_random_weights(promoted[0], draw))
    return {
        **_run(),
        "trials": zero + one,
        "pareto": front,
        "promoted": promoted,
        "chosen": {
            "label": promoted[0]["label"],
            "reason": "It has the lowest loss after retraining among the models that keep to the budget.",
        },
        "baselines": baselines,
        "forecast": _forecast(candidates, zero, one, [*promoted, *baselines[:-1]], draw),
        **_cost(),
    }


BASIS: dict[str, Any] = {
    "name": "coordinate",
    "reason": None,
    "tried": [],
    "kept_coordinates": None,
    "loss_added": None,
}


def _run() -> dict[str, Any]:
    """What was asked for, and of what."""
    return {
        "name": "demo",
        "created": "2026-01-15T10:42:07+00:00",
        "command": "python -m search.run --budget 50% --seed 0",
        "device": "cpu, 2 cores",
        "teacher": {
            "id": "studies/demo",
            "revision": None,
            "phases": [],
            "passed_over": [],
            "taught_by": None,
            "correction": None,
            "architecture": TEACHER,
            "parameters": _parameters(160, 448, 8, 4, 8),
            "loss": TEACHER_LOSS,
            "perplexity": math.exp(TEACHER_LOSS),
            "bits_per_byte": _bits(TEACHER_LOSS),
            "latency_ms": TEACHER_MS,
            "memory_bytes": 15_401_344,
            "benchmarks": {},
            "continuations": continuations("teacher"),
            "breakdown": breakdown(TEACHER, VOCABULARY, HEAD_SIZE, TEACHER_MS),
        },
        "budget": {"amount": BUDGET, "of": "total", "unit": "parameters", "tolerance": 0.02},
        "space": {"architectures": 1184},
        "basis": dict(BASIS),
        "distillation": {
            "loss": "forward-kl",
            "states": [],
            "schedule": "cosine",
            "search": "rungs",
            "optimizer": "adamw",
            "targets": {"short_distillation": TARGETS, "retraining": TARGETS},
        },
        "rates": copy.deepcopy(RATES),
        "bounds": [],
        "least": [],
        "objectives": [
            {"name": "loss", "unit": "nats/token"},
            {
                "name": "latency",
                "unit": "ms",
                "description": "prefill of 256 tokens and decode of 32, batch 1, median of 9",
            },
        ],
        "rungs": [{"rung": rung, "tokens": tokens} for rung, tokens in enumerate(RUNG_TOKENS)],
        "corpus": {
            "id": "standard library of Python 3.11",
            "block": 512,
            "calibration_tokens": 131_072,
            "distillation_tokens": 1_966_080,
            "validation_tokens": 98_304,
            "fingerprint": "5f1c2a9e7d30",
            "learn": "all",
            "layout": "<|endoftext|> before each document",
            "sources": [],
        },
    }


def _cost() -> dict[str, Any]:
    """How far ranks held, what was spent and with what."""
    return {
        "rank_correlation": [
            {"from": "parameters", "to": "rung 0", "kendall_tau": 0.08, "regret": 0.713, "candidates": 23},
            {"from": "parameters", "to": "rung 1", "kendall_tau": -0.12, "regret": 0.208, "candidates": 16},
            {"from": "parameters", "to": "retraining", "kendall_tau": 0.2, "regret": 0.097, "candidates": 5},
            {"from": "rung 0", "to": "rung 1", "kendall_tau": 0.48, "regret": 0.041, "candidates": 16},
            {"from": "rung 0", "to": "retraining", "kendall_tau": 0.6, "regret": 0.015, "candidates": 5},
            {"from": "rung 1", "to": "retraining", "kendall_tau": 0.8, "regret": 0.0, "candidates": 5},
        ],
        "prompts": list(PROMPTS),
        "energy": copy.deepcopy(ENERGY),
        "tokens": {
            "teacher_correction": 0,
            "ranking": 131_072,
            "targets": 1_966_080,
            "short_distillation": 16 * RUNG_TOKENS[1],
            "retraining": 6 * RETRAIN_TOKENS,
            "total": 131_072 + 1_966_080 + 16 * RUNG_TOKENS[1] + 6 * RETRAIN_TOKENS,
        },
        "seconds": {
            "corpus": 6.1,
            "ranking": 4.4,
            "targets": 21.9,
            "search": 183.2,
            "retraining": 261.0,
            "report": 1.1,
            "total": 477.7,
        },
        "versions": {
            "slimsearch": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.24.0",
            "optuna": "5.0.0",
        },
    }


def sample_ranking() -> RankingView:
    """Scores that fall off as those of real models do: fast for neurons, slowly for hidden."""
    draw = random.Random(11)
    layers = range(TEACHER_LAYERS)
    scores = {
        "mlp": [[1.3**layer * x for x in _falling(448, 2.0 + 0.4 * layer, draw)] for layer in layers],
        "heads": [_falling(8, 0.8 + 0.1 * layer, draw) for layer in layers],
        "hidden": _falling(160, 1.1, draw),
    }
    return RankingView(
        {name: profile_of(torch.tensor(values)) for name, values in scores.items()},
        [0.62, 0.21, 0.13, 0.11, 0.09, 0.12, 0.17, 0.41],
        "activations, batch = l2, sequence = mean; layers by influence",
    )


def _parameters(hidden: int, mlp: int, heads: int, kv_heads: int, layers: int) -> int:
    attention = 2 * hidden * HEAD_SIZE * (heads + kv_heads)
    return VOCABULARY * hidden + layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden


def _candidate(
    hidden: int, heads: int, kv_heads: int, layers: int, origin: str, draw: random.Random
) -> dict[str, Any]:
    """The architecture of the budget with these sizes, and a hidden merit from which its losses follow."""
    empty = _parameters(hidden, 0, heads, kv_heads, layers)
    mlp = 8 * round((BUDGET - empty) / (layers * 3 * hidden) / 8)
    kept = sorted({0, 7, *draw.sample(range(1, 7), layers - 2)})
    balance = abs(math.log(hidden / 128)) + 0.35 * abs(math.log(mlp / 300)) + 0.9 * math.log(8 / layers)
    return {
        "label": f"h{hidden}-m{mlp}-q{heads}-kv{kv_heads}-l{layers}",
        "origin": origin,
        "architecture": {
            "hidden": hidden,
            "mlp": mlp,
            "heads": heads,
            "kv_heads": kv_heads,
            "layers": layers,
            "kept_layers": kept,
        },
        "parameters": _parameters(hidden, mlp, heads, kv_heads, layers),
        "merit": balance + 0.06 * (8 - heads) + draw.gauss(0, 0.04),
        "latency_ms": 2.0 + 1.45 * layers + 0.012 * hidden + 0.1 * heads + draw.gauss(0, 0.12),
    }


def _trial(rung: int, number: int, candidate: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    spread = (1.5, 0.42)[rung]
    loss = TEACHER_LOSS + (1.9, 0.52)[rung] + spread * candidate["merit"] + draw.gauss(0, (0.2, 0.02)[rung])
    latency_ms = candidate["latency_ms"] + draw.gauss(0, 0.05)
    return {
        "rung": rung,
        "number": number,
        "state": "complete",
        "label": candidate["label"],
        "origin": candidate["origin"],
        "architecture": candidate["architecture"],
        "parameters": candidate["parameters"],
        "loss": round(loss, 4),
        "latency_ms": round(latency_ms, 3),
        "objectives": {"loss": round(loss, 4), "latency": round(latency_ms, 3)},
        "tokens": RUNG_TOKENS[rung],
        "failure": None,
    }


def _student(candidate: dict[str, Any], path: str | None, draw: random.Random) -> dict[str, Any]:
    start = TEACHER_LOSS + 1.9 + 1.5 * candidate["merit"]
    end = TEACHER_LOSS + 0.13 + 0.16 * candidate["merit"]
    short = TEACHER_LOSS + 0.52 + 0.42 * candidate["merit"]
    return _retrained(candidate, path, start, end, short, draw)


def _retrained(
    candidate: dict[str, Any],
    path: str | None,
    start: float,
    end: float,
    short: float | None,
    draw: random.Random,
) -> dict[str, Any]:
    steps = [RETRAIN_TOKENS * step // 12 for step in range(13)]
    curve = [
        [tokens, round(end + (start - end) * math.exp(-5.5 * math.sqrt(tokens / RETRAIN_TOKENS)), 4)]
        for tokens in steps
    ]
    loss = round(float(curve[-1][1]), 4)
    latency_ms = round(candidate["latency_ms"] + draw.gauss(0, 0.05), 3)
    return {
        "label": candidate["label"],
        "origin": candidate["origin"],
        "architecture": candidate["architecture"],
        "parameters": candidate["parameters"],
        "loss": loss,
        "perplexity": round(math.exp(loss), 4),
        "loss_after_pruning": None if short is None else round(start, 4),
        "loss_after_short_distillation": None if short is None else round(short, 4),
        "bits_per_byte": _bits(loss),
        "latency_ms": latency_ms,
        "path": path,
        "tokens": RETRAIN_TOKENS,
        "peak_rate": 1.35e-3,
        "seconds": 43.5,
        "curve": curve,
        "objectives": {"loss": loss, "latency": latency_ms},
        "benchmarks": {},
        "continuations": continuations(candidate["label"]) if path else [],
        "breakdown": breakdown(candidate["architecture"], VOCABULARY, HEAD_SIZE, latency_ms)
        if path
        else None,
        "failure": None,
        "note": None,
    }


def _from_random_weights(chosen: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    candidate = {**chosen, "origin": "random-weights"}
    return _retrained(candidate, None, math.log(VOCABULARY), 2.31, None, draw)


def _forecast(
    candidates: list[dict[str, Any]],
    zero: list[dict[str, Any]],
    one: list[dict[str, Any]],
    students: list[dict[str, Any]],
    draw: random.Random,
) -> dict[str, Any]:
    """Wider for those that were scored at rung 0 only; the first that was retrained is outside."""
    outcomes = {student["label"]: student["loss"] for student in students}
    complete = {trial["label"] for trial in zero if trial["loss"] is not None}
    distilled = {trial["label"] for trial in one}
    found = []
    for candidate in candidates:
        label, merit = candidate["label"], candidate["merit"]
        width = 0.07 if label in distilled else 0.4
        loss = TEACHER_LOSS + 0.15 + 0.18 * merit + draw.gauss(0, 0.02)
        low = max(TEACHER_LOSS + 0.01, loss - width)
        told = {"label": label, "loss": loss, "low": low, "high": loss + 1.2 * width}
        if label in complete:
            found.append({key: value if key == "label" else round(value, 4) for key, value in told.items()})
            found[-1]["outcome"] = outcomes.get(label)
    known = [told for told in found if told["outcome"] is not None]
    known[0].update(loss=known[0]["outcome"] + 0.11, low=known[0]["outcome"] + 0.03)
    known[0]["high"] = known[0]["loss"] + 0.09
    return {
        "tokens": RETRAIN_TOKENS,
        "interval": 0.9,
        "candidates": found,
        "held": sum(told["low"] <= told["outcome"] <= told["high"] for told in known),
        "outcomes": len(known),
        "absolute_error": sum(abs(told["loss"] - told["outcome"]) for told in known) / len(known),
    }


def _front(trials: list[dict[str, Any]]) -> list[str]:
    """Labels that no other trial beats in both loss and latency."""

    def beaten(trial: dict[str, Any]) -> bool:
        return any(
            other["loss"] < trial["loss"] and other["latency_ms"] < trial["latency_ms"] for other in trials
        )

    return [str(trial["label"]) for trial in trials if not beaten(trial)]


def _falling(count: int, steepness: float, draw: random.Random) -> list[float]:
    raw = [math.exp(-steepness * draw.random() * 2) * (1 + 3 * draw.random() ** 12) for _ in range(count)]
    return sorted(raw, reverse=True)


def _bits(loss: float) -> float:
    return round(loss / math.log(2) / BYTES_PER_TOKEN, 4)
