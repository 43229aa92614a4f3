"""Tables of the report: benchmark scores, the distillation set-up, and how well rankings predict others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures.rates import factor_words
from search.runs.trajectories import retrained_entries
from search.terminal import format as words

Entry = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A benchmark score as text."""

    text: str
    failure: str
    """Why there is no score; empty if there is one."""


@dataclass(frozen=True)
class BenchmarkTable:
    """Benchmark scores of the teacher and the retrained models.

    Attributes:
        columns: task, and its metric with an arrow that says whether higher or lower is better.
        rows: kind, name and cells of the teacher, then of every model that was scored.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]


def benchmark_table(summary: dict[str, Any]) -> BenchmarkTable | None:
    """Return the table of benchmarks; None if the run has none."""
    teacher, tasks = summary["teacher"], list(summary["teacher"]["benchmarks"])
    if not tasks:
        return None
    entries = [entry for _, entry in retrained_entries(summary) if entry["benchmarks"]]
    columns = [(task, metric(task, [teacher, *entries])) for task in tasks]
    rows = [("teacher", "teacher", _cells(teacher, tasks))]
    rows += [(_kind(summary, entry), entry["label"], _cells(entry, tasks)) for entry in entries]
    return BenchmarkTable(columns, rows)


def metric(task: str, entries: list[Entry]) -> str:
    """Return the metric of a task with its direction, such as ``acc \u2191``; empty if nothing was scored."""
    scored = (one for entry in entries if (one := entry["benchmarks"].get(task)) and one["value"] is not None)
    if (found := next(scored, None)) is None:
        return ""
    return f"{found['metric']} {chr(0x2191) if found['higher_is_better'] else chr(0x2193)}"


def score(found: Entry | None) -> str:
    """Format a score with its standard error; a dash if there is none."""
    if found is None or found["value"] is None:
        return words.DASH
    error = found["error"]
    return words.nats(found["value"]) + (f" ± {words.nats(error)}" if error else "")


def _cells(entry: Entry, tasks: list[str]) -> list[Cell]:
    found = (entry["benchmarks"].get(task) for task in tasks)
    return [Cell(score(one), (one or {}).get("failure") or "") for one in found]


def _kind(summary: dict[str, Any], entry: Entry) -> str:
    if summary["chosen"] is not None and summary["chosen"]["label"] == entry["label"]:
        return "chosen"
    return "promoted" if entry in summary["promoted"] else "baseline"


_LOSSES = {
    "forward-kl": "forward KL",
    "reverse-kl": "reverse KL",
    "jensen-shannon": "Jensen-Shannon",
    "mse": "squared difference",
    "cosine": "cosine",
    "cross-entropy": "cross-entropy",
}
_STATES = {"late": "a late block", "embedding": "the embedding", "attention": "a late attention"}
_FORMS = {
    "hidden": "final states of the teacher",
    "sampled": "tokens drawn from the teacher\u2019s predictions",
    "top-k": "the teacher\u2019s likeliest tokens",
    "live": "the teacher itself, beside the student",
    "text": "the text alone",
}
_SCHEDULES = {"cosine": "cosine", "wsd": "warm-up, stable, decay"}


def distillation_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) rows that describe how the students were distilled."""
    distillation = summary["distillation"]
    rows = [("loss", loss_words(distillation["loss"]))]
    if distillation["states"]:
        rows.append(("states compared", " and ".join(_STATES[name] for name in distillation["states"])))
    short, long = distillation["targets"]["short_distillation"], distillation["targets"]["retraining"]
    if short == long:
        rows.append(("targets", _targets_words(short)))
    else:
        rows += [("targets at the rungs", _targets_words(short)), ("in retraining", _targets_words(long))]
    rows.append(("learning rate", f"{_SCHEDULES[distillation['schedule']]}, {_rate_words(summary['rates'])}"))
    if distillation["optimizer"] == "adamw-8bit":
        rows.append(("optimiser", "AdamW, weights in bfloat16 and moments in 8 bits"))
    return rows + teacher_rows(summary["teacher"])


def _rate_words(rates: dict[str, Any]) -> str:
    """Say what peak rate the students learnt at."""
    if rates["peak"] is not None:
        return f"{rates['peak']:.2g} at its peak"
    how = "by a range test" if rates["tests"] else "by a model\u2019s size"
    return f"its peak {factor_words(rates['factor'])}, {how}"


def loss_words(loss: str) -> str:
    """Format a loss for readers: ``0.5 × forward KL + cross-entropy, temperature 2``."""
    terms, _, temperature = loss.partition(" at temperature ")
    parts = (part.rpartition("*") for part in terms.split("+"))
    named = (
        f"{weight} × {_LOSSES.get(term, term)}" if weight else _LOSSES.get(term, term)
        for weight, _, term in parts
    )
    return " + ".join(named) + (f", temperature {temperature}" if temperature else "")


def teacher_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows on the teacher: a substitute, its correction, its phases, and teachers passed over."""
    rows = [("taught by", teacher["taught_by"])] if teacher["taught_by"] else []
    correction = teacher["correction"]
    if correction is not None:
        tokens, before, after = (correction[key] for key in ("tokens", "loss_before", "loss_after"))
        losses = f"loss {words.nats(before)} before, {words.nats(after)} after"
        note = f"; {correction['note']}" if correction["note"] else ""
        rows.append(("teacher corrected", f"on {words.count(tokens)} tokens of the text, {losses}{note}"))
    if teacher["phases"]:
        *before, last = teacher["phases"]
        rows.append(("teacher\u2019s phases", f"{last}, after {', '.join(before)}"))
    if teacher["passed_over"]:
        rows.append(("teachers passed over", ", ".join(teacher["passed_over"])))
    return rows


def _targets_words(targets: dict[str, Any]) -> str:
    text = _FORMS[targets["form"]]
    if not targets["bytes"]:
        return text
    return f"{text}, {words.size(targets['bytes'])} for {words.count(targets['tokens'])} tokens"


_NAMES = {"parameters": "parameter count", "rung 0": "rung 0, straight after pruning"}


@dataclass(frozen=True)
class RankTable:
    """How well each ranking (row) predicts each later one (column)."""

    columns: list[tuple[str, str]]
    """Name of the ranking, and the number of candidates."""
    rows: list[tuple[str, list[tuple[str, str] | None]]]
    """Name of the ranking, and for each column Kendall's tau and the regret; None without such a pair."""


def rank_table(summary: dict[str, Any]) -> RankTable | None:
    """Return the table of all pairs of rankings with a regret; None if there are none."""
    pairs = {(pair["from"], pair["to"]): pair for pair in summary["rank_correlation"]}
    pairs = {orders: pair for orders, pair in pairs.items() if pair["regret"] is not None}
    before = list(dict.fromkeys(first for first, _ in pairs))
    after = [name for name in dict.fromkeys(second for _, second in pairs) if name != "rung 0"]
    if not after:
        return None
    return RankTable(
        [(name, _candidates([pair for (_, to), pair in pairs.items() if to == name])) for name in after],
        [(_NAMES.get(one, one), [_cell(pairs.get((one, name))) for name in after]) for one in before],
    )


def _candidates(pairs: list[dict[str, Any]]) -> str:
    numbers = {pair["candidates"] for pair in pairs}
    low, high = min(numbers), max(numbers)
    return f"{low} candidates" if low == high else f"{low} to {high} candidates"


def _cell(pair: dict[str, Any] | None) -> tuple[str, str] | None:
    if pair is None:
        return None
    return words.signed(pair["kendall_tau"], 2), words.nats(pair["regret"])
