"""What the study found, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import kendalltau

from search.foresight.foresight import coverage, forecast
from search.rungs.bracket import rank_correlations
from studies.bench.results import Row, markdown
from studies.exhaustive.searches import REPLAYS
from studies.exhaustive.table import Table
from studies.exhaustive.ways import DEFAULT, QUARTER, RULES, SAMPLERS, SEARCH_TOKENS
from studies.exhaustive.work import FINAL, FLAGS, TEACHER_LOSS, TOKENS

_NAMES = ["after pruning", *(f"after {tokens // 1024} k" for tokens in TOKENS[:-1]), "retrained"]


def tables(found: Sequence[Table], by_hand: Mapping[str, str]) -> str:
    """RESULTS.md.

    Args:
        found: the table of each seed.
        by_hand: label of each hand-made baseline, by its name.
    """
    first = found[0]
    parts = [
        _INTRODUCTION.format(
            architectures=len(first.rows),
            flags=" ".join(FLAGS),
            tokens=" / ".join(f"{tokens:,}" for tokens in TOKENS),
            seeds=len(found),
            total=f"{first.tokens:,}",
        ),
        "## The best, and what a person would have tried\n",
        _best(found, by_hand),
        "\n## How far an order foretells another\n",
        _correlations(found),
        "\n## The default search, seed by seed\n",
        _DEFAULT.format(limit=f"{QUARTER:,}", share=_share(found)),
        _default(found, by_hand),
        "\n## Samplers\n",
        _REGRET,
        _regrets([way.name for way in (DEFAULT, *SAMPLERS)]),
        "\n## Rules of promotion\n",
        _regrets([way.name for way in (DEFAULT, *RULES)]),
        "\n## Forecasts of the loss after retraining\n",
        _FORECASTS,
        _forecasts(found),
    ]
    return "\n".join(parts) + "\n"


def _best(found: Sequence[Table], by_hand: Mapping[str, str]) -> str:
    orders = [sorted(table.final, key=table.final.__getitem__) for table in found]
    shown = dict.fromkeys(orders[0][:5], "") | {label: name for name, label in by_hand.items()}
    shown[orders[0][-1]] = "the worst"
    head = ["architecture", ""]
    for table in found:
        head += [f"seed {table.seed}", "rank"]
    rows = []
    for label, name in sorted(shown.items(), key=lambda item: found[0].final[item[0]]):
        row = [f"`{label}`", name]
        for table, order in zip(found, orders, strict=True):
            row += [f"{table.final[label]:.4f}", str(order.index(label) + 1)]
        rows.append(row)
    both = [[table.final[label] for label in orders[0]] for table in found]
    between = float(kendalltau(both[0], both[1]).statistic)
    apart = statistics.mean(abs(one - other) for one, other in zip(*both[:2], strict=True))
    noise = f"\nBetween the two seeds τ is {between:.2f} and losses differ by {apart:.4f} on average."
    return f"{markdown(head, rows)}\n{noise}"


def _orders(table: Table) -> dict[str, Mapping[str, float]]:
    """Figures by which candidates can be ordered, the lower the better, from the cheapest on."""
    parameters = {label: -float(row[0]["parameters"]) for label, row in table.rows.items()}
    return {"parameters": parameters, **{name: table.losses(rung) for rung, name in enumerate(_NAMES)}}


def _correlations(found: Sequence[Table]) -> str:
    """Mean over seeds of Kendall's tau, and of the regret of who is first by an order."""
    values: dict[tuple[str, str], list[float]] = {}
    regrets: dict[str, list[float]] = {}
    for table in found:
        orders = _orders(table)
        for row in rank_correlations(orders):
            values.setdefault((row["from"], row["to"]), []).append(row["kendall_tau"])
        for name, order in orders.items():
            winner = min(order, key=order.__getitem__)
            regrets.setdefault(name, []).append(table.final[winner] - table.final[table.best])
    names = list(regrets)
    rows = [
        [
            name,
            *(f"{statistics.mean(values[name, to]):.2f}" if (name, to) in values else "" for to in names[1:]),
            f"{statistics.mean(regrets[name]):.4f}",
        ]
        for name in names[:-1]
    ]
    return markdown(["τ of", *names[1:], "regret of its first"], rows)


def _default(found: Sequence[Table], by_hand: Mapping[str, str]) -> str:
    runs = [row for row in REPLAYS.rows() if (row["way"], row["search_limit"]) == (DEFAULT.name, QUARTER)]
    rows = []
    for table in found:
        best_by_hand = min(table.final[label] for label in by_hand.values())
        for run in (run for run in runs if run["text"] == table.seed):
            loss = table.final[run["label"]]
            rows.append(
                [
                    f"{table.seed} / {run['seed']}",
                    f"`{run['label']}`",
                    f"{run['tokens']:,}",
                    f"{loss:.4f}",
                    f"{run['regret']:.4f}",
                    f"{loss - best_by_hand:+.4f}",
                ]
            )
    mean = statistics.mean(run["regret"] for run in runs)
    worst = max(run["regret"] for run in runs)
    closing = f"\nMean regret {mean:.4f}, the largest {worst:.4f} nats per token."
    head = ["text / search", "chosen", "tokens", "loss", "above the best", "beside the best baseline"]
    return f"{markdown(head, rows)}\n{closing}"


def _share(found: Sequence[Table]) -> str:
    """What a run takes at most, baselines and random weights included, of what the table took."""
    runs = [row for row in REPLAYS.rows() if (row["way"], row["search_limit"]) == (DEFAULT.name, QUARTER)]
    compared = 4 * TOKENS[FINAL - 1]
    return f"{(max(run['tokens'] for run in runs) + compared) / found[0].tokens:.3f}"


def _regrets(ways: Sequence[str]) -> str:
    rows: list[Row] = REPLAYS.rows()
    lines = []
    for way in ways:
        cells = []
        for limit in SEARCH_TOKENS:
            some = [row["regret"] for row in rows if (row["way"], row["search_limit"]) == (way, limit)]
            error = statistics.stdev(some) / len(some) ** 0.5
            cells.append(f"{statistics.mean(some):.4f} ± {error:.4f}")
        lines.append([way, *cells])
    return markdown(["", *(f"{limit:,}" for limit in SEARCH_TOKENS)], lines)


def _forecasts(found: Sequence[Table]) -> str:
    """How often the interval held and how far the median was off, from more and from fewer rungs."""
    rows = []
    for table in found:
        for name, sizes in _KNOWN.items():
            curves: dict[str, list[tuple[int, float]]] = {}
            for rung, size in enumerate(sizes):
                tokens = (0, *TOKENS)[rung]
                some = sorted(curves or table.rows, key=table.losses(max(0, rung - 1)).__getitem__)[:size]
                for label in some:
                    curves.setdefault(label, []).append((tokens, table.losses(rung)[label]))
            last = {label: curve for label, curve in curves.items() if len(curve) == len(sizes)}
            foretold = forecast(curves, TOKENS[-1], TEACHER_LOSS)
            got = coverage({label: foretold[label] for label in last}, table.final)
            wide = statistics.mean(foretold[label].high - foretold[label].low for label in last)
            order = {label: foretold[label].loss for label in last}
            [tau] = rank_correlations({"forecast": order, "retrained": table.final})
            rows.append(
                [
                    f"{name}, seed {table.seed}",
                    f"{got.held} of {got.outcomes}",
                    f"{got.absolute_error:.4f}",
                    f"{wide:.3f}",
                    f"{tau['kendall_tau']:.2f}",
                ]
            )
    return markdown(["known", "held", "off by", "width", "τ with retrained"], rows)


#: How many candidates each rung has, the best of the one below.
_KNOWN = {
    "everybody at both rungs": (49, 49, 49),
    "everybody at the first rung": (49, 49),
    "32 at the first and 8 at the second": (49, 32, 8),
}
_FORECASTS = """A 90% interval, from the losses at the rungs alone; scored on those of the last rung known.
"""
_INTRODUCTION = """# Every architecture near one budget: what was measured

All {architectures} architectures of `{flags}` on the embedded teacher, each distilled for
{tokens} tokens, every time from its pruned weights and with a cosine of its own: two rungs and retraining.
Validation loss in nats per token; {seeds} seeds of the order of the text; {total} tokens a seed. Written by
`python -m studies.exhaustive` from `results.jsonl` and `replays.jsonl`.
"""
_DEFAULT = """The default search with `--search-tokens {limit}`: with the promoted, the baselines and random
weights retrained it takes at most {share} of the tokens of the table. Eight seeds of the search on each seed
of the text; the search is the real one, with its rungs, sampler and promotion, and looks its losses up.
"""
_REGRET = """Loss of the chosen model above the best of the space after retraining, against tokens of short
distillation; mean and its standard error over the seeds of text and search.
"""
