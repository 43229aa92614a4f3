"""``python -m search.choose RUN``: choose a model of a finished run by bounds or weights of the user.

Exit status: 0 if there is such a model, 3 if no retrained model lies within the bounds, 2 for invalid input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tyro

from search.report import write_report
from search.runs.choice import Answer, choose_by_criteria, figures_in_words, save_choice
from search.runs.criteria import Criteria, figure_of, read_bound, read_weights
from search.runs.saved_run import SavedRun, find_run
from search.runs.summary import write
from search.settings.objectives import UNITS, read_task_bounds
from search.stages.model_card import write_cards
from search.terminal.command import exit_status, flag_help
from search.terminal.format import text_table
from space.input_error import InputError

#: Exit status if no retrained model lies within the bounds.
NONE_WITHIN = 3
_DESCRIPTION = """examples:
  python -m search.choose demo-1M
  python -m search.choose runs/demo-1M --weights loss=1 latency=0.5 --json
  python -m search.choose runs/demo-1M --max-latency 20ms --save

Choose a model of a finished run.

With neither bounds nor weights it is the model with the lowest loss, as in the run itself.
Weights: the model with the least sum of weight x (value / the teacher's value).
What the run bounds stays bounded. Exit status 3: no retrained model lies within the bounds;
the nearest is named, and a candidate that would do.
"""


def _arg(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@flag_help
@dataclass(frozen=True)
class ChooseFlags:
    """Choose a model of a finished run."""

    run: Annotated[str, tyro.conf.Positional, _arg("RUN")]
    """Directory of the run, or its name below runs/."""
    max_latency: Annotated[str | None, _arg("AMOUNT")] = None
    """The most that is allowed: 20ms, 0.5s."""
    max_parameters: Annotated[str | None, _arg("AMOUNT")] = None
    """900M, 4B."""
    max_memory: Annotated[str | None, _arg("AMOUNT")] = None
    """Of weights and KV cache: 8GB, 500MiB."""
    max_flops: Annotated[str | None, _arg("AMOUNT")] = None
    """Of a token: 8B."""
    min: Annotated[tuple[str, ...], _arg("TASK=SCORE ...")] = ()
    """The least score on a task of the run's --benchmarks: blimp=0.7."""
    max: Annotated[tuple[str, ...], _arg("TASK=SCORE ...")] = ()
    """The most, on a task of which less is better."""
    weights: Annotated[tuple[str, ...], _arg("NAME=WEIGHT ...")] = ()
    """Of objectives and tasks, 0 or more: loss=1 latency=0.5 blimp=1."""
    json: bool = False
    """Print the answer as one JSON object."""
    save: bool = False
    """Make it the run's choice: summary.json, report.html and the model cards are written again. Without
    bounds and weights, give the choice back to the run."""

    def criteria(self, tasks: Collection[str] = ()) -> Criteria:
        """Return the bounds and weights of these flags.

        Args:
            tasks: those that the run scored its models by.

        Raises:
            InputError: an amount or a weight cannot be parsed, or a task is unknown.
        """
        most = {name: getattr(self, f"max_{name}", None) for name in UNITS}
        bounds = {name: read_bound(name, amount) for name, amount in most.items() if amount is not None}
        bounds |= read_task_bounds(self.max, "--max", tasks)
        return Criteria(bounds, read_weights(self.weights, tasks), read_task_bounds(self.min, "--min", tasks))


def main(arguments: list[str] | None = None) -> int:
    """Choose a model by these command-line arguments, and return the exit status."""
    return exit_status(partial(_main, sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    flags = tyro.cli(
        ChooseFlags,
        args=arguments,
        prog="python -m search.choose",
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    run = find_run(flags.run)
    criteria = flags.criteria(list(run.summary["teacher"]["benchmarks"]))
    found = choose_by_criteria(run.summary, criteria)
    if flags.save:
        save(run, found, by_user=bool(criteria.words or criteria.weights))
    print(
        json.dumps(as_json(run, found), indent=1, ensure_ascii=False) if flags.json else in_words(run, found)
    )
    return 0 if found.chosen else NONE_WITHIN


def save(run: SavedRun, found: Answer, by_user: bool) -> None:
    """Make an answer the choice of the run. Files are written atomically, the summary last.

    Args:
        run: a finished run.
        found: the answer for its models.
        by_user: whether the user chose by bounds or weights; running the search again keeps such a choice.

    Raises:
        InputError: no model was chosen.
    """
    choice = found.choice
    if choice is None:
        raise InputError(
            "Only a model that was retrained can be the choice", found.reason, "Widen the bounds"
        )
    save_choice(run.directory.choice, choice if by_user else None)
    summary = run.summary | {"chosen": {"label": choice.label, "reason": choice.reason}}
    write_cards(summary, run.path)
    write_report(summary, run.ranking_view, run.directory.report)
    write(run.directory.summary, summary)


def in_words(run: SavedRun, found: Answer) -> str:
    """Describe the answer: the model, its figures beside the teacher's, and the runner-up."""
    if found.chosen is None:
        lines = [found.reason]
        if found.nearest is not None:
            lines += ["", *_columns({"nearest": found.nearest, "teacher": run.summary["teacher"]})]
        if found.candidate is not None:
            label, loss, rung = (found.candidate[name] for name in ("label", "loss", "rung"))
            lines += [
                "",
                f"{label}, which was not retrained, lies within: loss {loss:.4f} at rung {rung}.",
                *([f"To retrain it: {found.command}"] if found.command else []),
            ]
        return "\n".join(lines)
    columns: dict[str, dict[str, Any]] = {"chosen": found.chosen, "teacher": run.summary["teacher"]}
    lines = [
        f"chosen     {found.chosen['label']}",
        f"           {_path(run, found.chosen) or 'its weights were not kept'}",
        f"           {found.reason}",
    ]
    if found.runner_up is not None:
        columns["runner-up"] = found.runner_up
        lines.append(f"runner-up  {found.runner_up['label']}: {found.why_not}")
    return "\n".join([*lines, "", *_columns(columns)])


def _columns(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table with a line for each figure and a column for each entry."""
    columns = [figures_in_words(entry) for entry in entries.values()]
    rows = ([name, *(column.get(name, "–") for column in columns)] for name in columns[0])
    return text_table([["", *entries], *rows])


def as_json(run: SavedRun, found: Answer) -> dict[str, Any]:
    """Return the answer for JSON output, with figures in the units of ``search.settings.objectives``."""
    teacher = run.summary["teacher"]
    return {
        "run": str(run.path),
        "chosen": _entry(run, found.chosen),
        "reason": found.reason,
        "teacher": _entry(run, teacher | {"label": teacher["id"]}),
        "runner_up": _entry(run, found.runner_up),
        "why_not": found.why_not or None,
        "nearest": _entry(run, found.nearest),
        "candidate": _entry(run, found.candidate),
        "command": found.command or None,
    }


def _entry(run: SavedRun, entry: dict[str, Any] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    shown = {"label": entry["label"], "path": _path(run, entry), "architecture": entry["architecture"]}
    scores = {task: figure_of(entry, task) for task in entry.get("benchmarks", {})}
    return shown | {name: figure_of(entry, name) for name in UNITS} | ({"tasks": scores} if scores else {})


def _path(run: SavedRun, entry: dict[str, Any]) -> str | None:
    return str(run.path / entry["path"]) if entry.get("path") else None


if __name__ == "__main__":
    sys.exit(main())
