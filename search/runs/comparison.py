"""Finished runs side by side: their figures, what was asked differently, and what must not be compared."""

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
    """Runs, in the order in which they were named."""

    runs: Sequence[SavedRun]

    @property
    def names(self) -> list[str]:
        """By which a person tells the runs apart: their names, their directories where these repeat."""
        names = [run.config.name for run in self.runs]
        return names if len(set(names)) == len(names) else [str(run.path) for run in self.runs]

    @property
    def losses_compare(self) -> bool:
        """Whether all losses are of the same tokens, so that nats per token say the same."""
        return len(set(map(_validation, self.runs))) == 1

    @property
    def same_text(self) -> bool:
        """Whether all were validated on the same text, so that bits per byte say the same."""
        return len({run.summary["corpus"]["id"] for run in self.runs}) == 1

    @property
    def latencies_compare(self) -> bool:
        """Whether all latencies are of one device and one workload."""
        return len(set(map(_timing, self.runs))) == 1

    def cautions(self) -> list[str]:
        """What must not be compared and why, a sentence each."""
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
        """What each run came to, by figure, a value a run; None where there is none.

        Losses in nats per token, latencies in milliseconds.
        """
        each = [_figures(run) for run in self.runs]
        keys = list(dict.fromkeys(key for one in each for key in one))
        return {key: [one.get(key) for one in each] for key in keys}

    def settings(self) -> dict[str, list[Any]]:
        """The settings of ``config.toml`` that differ, a value a run."""
        each = [asdict(run.config) for run in self.runs]
        return {
            name: [_without_password(one[name]) for one in each]
            for name in each[0]
            if name != "name" and any(one[name] != each[0][name] for one in each)
        }

    def rows(self) -> list[list[str]]:
        """The figures as people read them: a name, then a cell a run."""
        apart = set() if self.losses_compare else {"teacher_loss", "loss", "best_baseline_loss"}
        apart |= set() if self.latencies_compare else {"latency_ms"}
        return [
            [_title(key, key in apart), *(_cell(key, value) for value in values)]
            for key, values in self.figures().items()
        ]

    def setting_rows(self) -> list[list[str]]:
        """The settings that differ, as people read them."""
        return [[name, *map(_setting, values)] for name, values in self.settings().items()]

    def as_dict(self) -> Entry:
        """For programs."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "losses_compare": self.losses_compare,
            "latencies_compare": self.latencies_compare,
            "cautions": self.cautions(),
            "figures": self.figures(),
            "settings": self.settings(),
        }


#: Of figures that are not called as their keys are.
_TITLES = {
    "teacher_parameters": "teacher, parameters",
    "teacher_loss": "teacher, loss",
    "loss_above_teacher": "loss above teacher",
    "bits_per_byte": "bits per byte",
    "latency_ms": "latency",
    "best_baseline": "best baseline",
    "best_baseline_loss": "best baseline, loss",
}


def _title(key: str, apart: bool) -> str:
    title = _TITLES.get(key, key.replace("tau", "Kendall τ,"))
    return f"{title} (not comparable)" if apart else title


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
    """Kendall's τ from each rung to the next, and from the last to retraining."""
    stages = [*(f"rung {rung['rung']}" for rung in summary["rungs"]), "retraining"]
    following = set(itertools.pairwise(stages))
    return {
        f"tau {pair['from']} to {pair['to']}": pair["kendall_tau"]
        for pair in summary["rank_correlation"]
        if (pair["from"], pair["to"]) in following
    }


def _validation(run: SavedRun) -> Hashable:
    """The same for runs whose losses are of the same tokens.

    The fingerprint is of all splits, and differs where only the tokens of training do. Loss and bits per byte
    of one model together say how many bytes a token of the validation set has: with the numbers of tokens
    that tells texts and tokenizers apart.
    """
    corpus, teacher = run.summary["corpus"], run.summary["teacher"]
    if not teacher["bits_per_byte"]:
        return str(corpus["fingerprint"])
    bytes_a_token = teacher["loss"] / teacher["bits_per_byte"] / math.log(2)
    return corpus["id"], corpus["block"], corpus["validation_tokens"], f"{bytes_a_token:.9g}"


def _timing(run: SavedRun) -> Hashable:
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
