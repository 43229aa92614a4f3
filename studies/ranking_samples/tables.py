"""The tables of the study, from its rows."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from studies.bench.results import Row, markdown
from studies.ranking_samples.orders import FRACTIONS, agreement, block_losses, draws, dropped
from studies.ranking_samples.work import RESULTS, counts, texts


def tables() -> str:
    """Two tables for each teacher that was measured, and one of precisions."""
    rows = RESULTS.rows()
    names = list(dict.fromkeys(row["teacher"] for row in rows))
    parts = [
        "# Samples for the order of layers: what was measured\n",
        "Layers are ordered by the loss without each of them. Samples of the blocks are drawn 16 times; tau",
        "is Kendall's, between the order by a sample and that by all blocks. The loss is that of the teacher",
        "without the cheapest layers, in nats per token on validation text, without any training; by all",
        "blocks, then by samples: mean, and the highest of the draws. Written by",
        "`python -m studies.ranking_samples --table` from `results.jsonl`.\n",
    ]
    for name in names:
        parts += [f"## {name}\n", _samples(rows, name), ""]
    return "\n".join([*parts, "## bfloat16\n", _PRECISIONS, "", _precisions(rows, names), ""])


def _samples(rows: list[Row], name: str) -> str:
    losses, block = block_losses(rows, name), _block(name)
    whole = losses.mean(0)
    head = ["tokens", "share", "tau, mean", "tau, least"]
    head += [f"loss without {count} of {losses.shape[1]}" for count in counts(losses)]
    lines = []
    for fraction in (*FRACTIONS, 1):
        samples = draws(len(losses), fraction) if fraction < 1 else [list(range(len(losses)))]
        taus = [agreement(losses[sample].mean(0), whole) for sample in samples]
        cells = [f"{len(samples[0]) * block:,}", f"{fraction:.3g}"]
        cells += [f"{sum(taus) / len(taus):.3f}", f"{min(taus):.3f}"]
        cells += [_students(rows, name, losses, samples, count) for count in counts(losses)]
        lines.append(cells)
    return markdown(head, lines)


def _students(rows: list[Row], name: str, losses: Tensor, samples: list[list[int]], count: int) -> str:
    students = [row for row in rows if (row["kind"], row["teacher"]) == ("student", name)]
    known = {tuple(row["dropped"]): row["loss"] for row in students}
    choices = [dropped(losses[sample].mean(0), count) for sample in samples]
    if any(choice not in known for choice in choices):
        return "-"
    found = [known[choice] for choice in choices]
    return f"{sum(found) / len(found):.3f}" + (f", {max(found):.3f}" if len(found) > 1 else "")


_PRECISIONS = """Products of matrices with inputs, weights and outputs rounded to bfloat16 and sums in
float32, beside float32: the order by the same blocks. The last column is the mean absolute change of a
layer's mean loss."""


def _precisions(rows: list[Row], names: list[str]) -> str:
    lines = []
    for name in names:
        rounded = block_losses(rows, name, "bfloat16")
        if len(rounded):
            exact = block_losses(rows, name)[: len(rounded)]
            change = float((rounded.mean(0) - exact.mean(0)).abs().mean())
            tau = agreement(rounded.mean(0), exact.mean(0))
            lines.append([name, f"{len(rounded) * _block(name):,}", f"{tau:.3f}", f"{change:.5f}"])
    return markdown(["teacher", "tokens", "tau", "change of the loss, nats"], lines)


def _block(name: str) -> int:
    return texts(Path())[name].block
