"""Compare finished runs: their figures, the settings that differ, and which figures are not comparable."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.runs.saved_run import SavedRun
from search.runs.trajectories import chosen_student
from search.settings.objectives import amount_in_words
from search.terminal import format as words
from search.terminal.command import redact_password
from space.counting.budget import format_amount

Entry = dict[str, Any]
_BASELINES = ("uniform", "mlp-heads", "depth")


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, in the order in which the user named them."""

    runs: Sequence[SavedRun]

    @property
    def names(self) -> list[str]:
        """The names of the runs, or their directories if two names are equal."""
        names = [run.config.name for run in self.runs]
        return names if len(set(names)) == len(names) else [str(run.path) for run in self.runs]

    @property
    def losses_compare(self) -> bool:
        """Whether all losses were measured on the same tokens, so that nats per token are comparable."""
        return len(set(map(_validation, self.runs))) == 1

    @property
    def same_text(self) -> bool:
        """Whether all runs validated on the same text, so that bits per byte are comparable."""
        return len({run.summary["corpus"]["id"] for run in self.runs}) == 1

    @property
    def latencies_compare(self) -> bool:
        """Whether all latencies were measured on the same device with the same workload."""
        return len(set(map(_timing, self.runs))) == 1

    def cautions(self) -> list[str]:
        """Say what must not be compared and why, one sentence each."""
        found = []
        if not self.losses_compare and self.same_text:
            found.append(
                "The losses are of different tokens (other blocks, or another tokenizer), and must not be "
                "compared; bits per byte may be."
            )
        elif not self.losses_compare:
            found.append(
                "The losses are of different texts, and must not be compared; bits per byte say little more, "
                "since one text is easier to foretell than another."
            )
        if not self.latencies_compare:
            found.append(
                "The latencies were measured on different devices, or with other prompts and answers, and "
                "must not be compared."
            )
        return found

    def figures(self) -> dict[str, list[Any]]:
        """Return the results by figure, one value for each run; None where a run lacks the figure.

        Losses are in nats per token, latencies in milliseconds.
        """
        each = [_figures(run) for run in self.runs]
        keys = list(dict.fromkeys(key for one in each for key in one))
        return {key: [one.get(key) for one in each] for key in keys}

    def settings(self) -> dict[str, list[Any]]:
        """Return the settings of ``config.toml`` that differ, one value for each run."""
        each = [asdict(run.config) for run in self.runs]
        return {
            name: [_without_password(one[name]) for one in each]
            for name in each[0]
            if name != "name" and any(one[name] != each[0][name] for one in each)
        }

    def rows(self) -> list[list[str]]:
        """Return the figures as table rows: a title, then one cell for each run."""
        not_comparable = set() if self.losses_compare else {"teacher_loss", "loss", "best_baseline_loss"}
        not_comparable |= set() if self.latencies_compare else {"latency_ms"}
        return [
            [_title(key, key in not_comparable), *(_cell(key, value) for value in values)]
            for key, values in self.figures().items()
        ]

    def setting_rows(self) -> list[list[str]]:
        """Return the settings that differ as table rows."""
        return [[name, *map(_setting, values)] for name, values in self.settings().items()]

    def as_dict(self) -> Entry:
        """Return everything as JSON-ready data."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "losses_compare": self.losses_compare,
            "latencies_compare": self.latencies_compare,
            "cautions": self.cautions(),
            "figures": self.figures(),
            "settings": self.settings(),
        }


#: Titles of figures whose key does not serve as one.
_TITLES = {
    "teacher_parameters": "teacher, parameters",
    "teacher_loss": "teacher, loss",
    "loss_above_teacher": "loss above teacher",
    "bits_per_byte": "bits per byte",
    "latency_ms": "latency",
    "best_baseline": "best baseline",
    "best_baseline_loss": "best baseline, loss",
}


def _title(key: str, not_comparable: bool) -> str:
    title = _TITLES.get(key, key.replace("tau", "Kendall τ,"))
    return f"{title} (not comparable)" if not_comparable else title


def _figures(run: SavedRun) -> Entry:
    summary, teacher = run.summary, run.summary["teacher"]
    chosen = chosen_student(summary) or {}
    loss: float | None = chosen.get("loss")
    hand_made = [
        one for one in summary["baselines"] if one["origin"] in _BASELINES and one["loss"] is not None
    ]
    best: Entry = min(hand_made, key=lambda one: float(one["loss"]), default={})
    revision, budget = teacher["revision"], summary["budget"]
    amount = format_amount(budget["amount"])
    return {
        "teacher": teacher["id"] + (f"@{revision}" if revision else ""),
        "teacher_parameters": teacher["parameters"],
        "teacher_loss": teacher["loss"],
        "budget": f"{amount} {budget['unit']} ± {words.percent(budget['tolerance'])}",
        "text": summary["corpus"]["id"],
        "chosen": chosen.get("label"),
        "parameters": chosen.get("parameters"),
        "loss": loss,
        "loss_above_teacher": None if loss is None else loss - teacher["loss"],
        "bits_per_byte": chosen.get("bits_per_byte"),
        "latency_ms": chosen.get("latency_ms"),
        "best_baseline": best.get("origin"),
        "best_baseline_loss": best.get("loss"),
        "tokens": summary["tokens"]["total"],
        "hours": summary["seconds"]["total"] / 3600,
        **_foresight(summary),
    }


def _foresight(summary: Entry) -> Entry:
    """Return Kendall's τ between each rung and the next, and between the last rung and retraining."""
    stages = [*(f"rung {rung['rung']}" for rung in summary["rungs"]), "retraining"]
    following = set(itertools.pairwise(stages))
    return {
        f"tau {pair['from']} to {pair['to']}": pair["kendall_tau"]
        for pair in summary["rank_correlation"]
        if (pair["from"], pair["to"]) in following
    }


def _validation(run: SavedRun) -> Hashable:
    """Return a key that is equal for runs whose losses were measured on the same tokens.

    The corpus fingerprint does not serve: it covers all splits, so it differs where only the training tokens
    do. Loss and bits per byte of one model give the bytes per token of the validation set. Together with the
    number of tokens, that tells texts and tokenizers apart.
    """
    corpus, teacher = run.summary["corpus"], run.summary["teacher"]
    if not teacher["bits_per_byte"]:
        return str(corpus["fingerprint"])
    bytes_a_token = teacher["loss"] / teacher["bits_per_byte"] / math.log(2)
    read = (corpus["id"], corpus["learn"], corpus["layout"], corpus["block"], corpus["validation_tokens"])
    return *read, f"{bytes_a_token:.9g}"


def _timing(run: SavedRun) -> Hashable:
    """Return a key that is equal for runs whose latencies were measured alike."""
    described = [one.get("description") for one in run.summary["objectives"] if one["name"] == "latency"]
    return run.summary["device"], *described


def _cell(key: str, value: Any) -> str:
    if value is None:
        return words.DASH
    if key.startswith("tau"):
        return words.signed(value, 2)
    if key in ("parameters", "teacher_parameters"):
        return f"{value:,}"
    if key == "latency_ms":
        return amount_in_words("latency", value)
    if key == "tokens":
        return format_amount(value)
    if key == "hours":
        return f"{value:.2f}"
    if key == "loss_above_teacher":
        return words.signed(value, 4)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _without_password(value: Any) -> Any:
    return redact_password(value) if isinstance(value, str) else value


def _setting(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text or words.DASH
