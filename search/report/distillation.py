"""How the students of a run learnt, in words: loss, targets, schedule, and what was done to the teacher."""

from __future__ import annotations

from typing import Any

from search.terminal import format as words

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
    """Names and what they stand for; those that say nothing of this run are left out."""
    about = summary["distillation"]
    rows = [("loss", loss_words(about["loss"]))]
    if about["states"]:
        rows.append(("states compared", " and ".join(_STATES[name] for name in about["states"])))
    short, long = about["targets"]["short_distillation"], about["targets"]["retraining"]
    if short == long:
        rows.append(("targets", _targets_words(short)))
    else:
        rows += [("targets at the rungs", _targets_words(short)), ("in retraining", _targets_words(long))]
    rows.append(("learning rate", _SCHEDULES[about["schedule"]]))
    return rows + teacher_rows(summary["teacher"])


def loss_words(loss: str) -> str:
    """A loss as people say it: ``0.5 × forward KL + cross-entropy, temperature 2``."""
    terms, _, temperature = loss.partition(" at temperature ")
    parts = (part.rpartition("*") for part in terms.split("+"))
    said = (
        f"{weight} × {_LOSSES.get(term, term)}" if weight else _LOSSES.get(term, term)
        for weight, _, term in parts
    )
    return " + ".join(said) + (f", temperature {temperature}" if temperature else "")


def teacher_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    """Who taught in its place, its correction, the checkpoints before it, and others that were named."""
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
    said = _FORMS[targets["form"]]
    if not targets["bytes"]:
        return said
    return f"{said}, {words.size(targets['bytes'])} for {words.count(targets['tokens'])} tokens"
