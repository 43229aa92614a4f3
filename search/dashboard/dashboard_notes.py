"""What the dashboard says of rungs and retrained models, as Markdown."""

from __future__ import annotations

from typing import Any

from search.runs.journeys import retrained_entries
from search.runs.within_bounds import bounds_of
from search.settings.bounds import in_words
from search.settings.config import RunConfig
from search.terminal import format as words

Entry = dict[str, Any]


def rung_note(config: RunConfig, summary: Entry, rung: int, pages: dict[str, str], figures: str) -> str:
    """What a rung is, what is made small at it, and how far it foretells the next.

    Args:
        config: of the run.
        summary: of the run, or what is known so far.
        rung: its number.
        pages: address of the trial's page by label, of the retrained models that have a trial here.
        figures: address of the study that has the figures; empty if it is this one.
    """
    units = ", ".join(f"{one['name']} ({one['unit']})" for one in summary["objectives"])
    lines = [
        f"## Rung {rung} of {_plain(config.name)}",
        "",
        _what(config, rung),
        "",
        f"- Made small: {units}",
    ]
    lines += [f"- {one['name']}: {one['description']}" for one in summary["objectives"] if _told(one)]
    if bounds := bounds_of(summary):
        lines.append(f"- Bounds: {in_words(bounds)}; what is over one is not distilled, and goes no further")
    lines += [f"- {line}" for line in _foresight(summary, rung)]
    if figures:
        lines.append(f"- Pareto front and learning curves of the run: [rung 0]({figures})")
    if chosen := summary["chosen"]:
        lines.append(f"- To take: {_link(chosen['label'], pages)}: {_plain(chosen['reason'])}")
    if pages:
        lines += ["", f"Retrained: {', '.join(_link(label, pages) for label in pages)}"]
    return "\n".join(lines)


def model_note(summary: Entry, student: Entry, path: str | None, card: str | None) -> str:
    """What became of a candidate that was retrained.

    Args:
        summary: of the run, or what is known so far.
        student: its entry.
        path: where the model lies.
        card: address of its model card.
    """
    teacher, chosen = summary["teacher"], summary["chosen"]
    taken = chosen is not None and chosen["label"] == student["label"]
    share = words.percent(student["parameters"] / teacher["parameters"]) if teacher["parameters"] else ""
    lines = [
        f"## {_plain(student['label'])}{': the model to take' if taken else ''}",
        "",
        f"{words.sizes(student['architecture'], teacher['architecture']['layers'])}; layers "
        f"{words.layer_ranges(student['architecture']['kept_layers'])} of the teacher. "
        f"{student['parameters']:,} parameters{f', {share} of the teacher' if share else ''}. "
        f"Proposed by: {words.origin(student['origin'])}.",
        "",
        "| | \u2003tokens | \u2003loss, nats/token |",
        "|---|--:|--:|",
        *_losses(summary, student),
        "",
    ]
    if student["latency_ms"] is not None:
        beside = f", the teacher {words.milliseconds(teacher['latency_ms'])} ms"
        lines.append(f"- Latency: {words.milliseconds(student['latency_ms'])} ms{beside}")
    if chosen is not None:
        lines.append(f"- {'Chosen' if taken else 'Not chosen'}: {_why(summary, student, taken)}")
    if student["failure"]:
        lines.append(f"- Retraining failed: {_plain(student['failure'])}")
    if path:
        lines.append(f"- Model: `{path}`")
    if card:
        lines.append(f"- [Model card]({card})")
    return "\n".join(lines)


def _what(config: RunConfig, rung: int) -> str:
    if rung == 0:
        return "The loss of each candidate straight after pruning. Nothing is trained."
    tokens = config.rung_tokens[rung - 1]
    onward = config.schedule == "wsd" and rung > 1
    start = "on from where the rung below had come to" if onward else "from its pruned weights"
    return f"Each candidate is distilled for {tokens:,} tokens, {start}, over the same batches for all."


def _told(objective: Entry) -> bool:
    return bool(objective.get("description"))


def _foresight(summary: Entry, rung: int) -> list[str]:
    """How far the order here is the order at the next rung and after retraining."""
    pairs = {(one["from"], one["to"]): one for one in summary.get("rank_correlation", ())}
    found = []
    for stage in (f"rung {rung + 1}", "retraining"):
        pair = pairs.get((f"rung {rung}", stage))
        if pair is not None and pair["kendall_tau"] is not None:
            tau = words.signed(pair["kendall_tau"], 2)
            found.append(
                f"Kendall's τ with the order at {stage}: {tau}, over {pair['candidates']} candidates"
            )
    return found


def _losses(summary: Entry, student: Entry) -> list[str]:
    mine = [trial for trial in summary["trials"] if trial["label"] == student["label"]]
    rows = [
        f"| rung {trial['rung']} | {trial['tokens']:,} | {words.nats(trial['loss'], 4)} |"
        for trial in sorted(mine, key=lambda trial: int(trial["rung"]))
        if trial["loss"] is not None
    ]
    retrained = f"| retraining | {student['tokens']:,} | **{words.nats(student['loss'], 4)}** |"
    return [*rows, retrained, f"| teacher | | {words.nats(summary['teacher']['loss'], 4)} |"]


def _why(summary: Entry, student: Entry, taken: bool) -> str:
    if taken:
        return _plain(summary["chosen"]["reason"])
    entries = [entry for _, entry in retrained_entries(summary)]
    best = next(entry for entry in entries if entry["label"] == summary["chosen"]["label"])
    if student["loss"] is None or best["loss"] is None:
        return f"{best['label']} is"
    gap = student["loss"] - best["loss"]
    compared = f"its loss is {words.nats(abs(gap), 4)} nats {'higher' if gap >= 0 else 'lower'}"
    return f"{compared} than that of {best['label']}"


def _link(label: str, pages: dict[str, str]) -> str:
    return f"[{label}]({pages[label]})" if label in pages else label


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to do, on one line."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))
