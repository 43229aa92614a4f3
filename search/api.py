"""The stages of a run as functions for scripts and notebooks; ``python -m search.run`` runs the same stages.

    from search.api import Flags, extract, rank, retrain, search

    run = rank(Flags(budget="60%", model=("path/to/model",), data=("text.txt",)))
    trials = search(run)
    models = retrain(run)
    student = extract(run, hidden=96, layers=6)

Each stage resumes where an earlier process stopped, so calling a completed stage again costs nothing.
"""

from __future__ import annotations

from dataclasses import fields

import pandas as pd
from transformers import PreTrainedModel

from search.frames import models as models_of
from search.frames import trials as trials_of
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.stages.pipeline import Run, at_work, begin_or_join, rank_teacher, retrain_promoted, search_rungs
from search.storage.run_directory import RunDirectory
from search.terminal.command import is_multi_process, redact_password
from search.terminal.console import Console
from space.enumeration.hand_made import architecture_of_sizes
from space.enumeration.limits import axis_named
from space.input_error import InputError

__all__ = ["Flags", "Run", "extract", "rank", "retrain", "search"]


def rank(flags: Flags) -> Run:
    """Load the teacher, prepare its targets and rank its units: everything that candidates depend on.

    Args:
        flags: the flags of the command line, by the same names; ``budget`` is enough.

    Returns:
        The run. ``run.directory.path`` is its folder, ``run.context.space`` the architectures near the
        budget, ``run.context.ranking`` the order of importance along every axis.

    Raises:
        InputError: the run is impossible, with the same message as on the command line.
    """
    _require_one_process()
    resolved = resolve(flags)
    directory = RunDirectory(flags.out / resolved.config.name)
    console = Console(flags.quiet, flags.verbose)
    with console.running():
        resolved, teacher, corpus = begin_or_join(resolved, directory, console)
        with at_work(resolved.config, directory) as workers:
            return rank_teacher(resolved, directory, console, _as_call(flags), teacher, corpus, workers)


def search(run: Run) -> pd.DataFrame:
    """Evaluate candidates until every rung has all of its candidates.

    Returns:
        All evaluations, with the columns of ``search.frames.trials``.
    """
    with run.console.running(), at_work(run.context.config, run.directory) as workers:
        search_rungs(run, workers)
    return trials_of(run.directory.path)


def retrain(run: Run) -> pd.DataFrame:
    """Retrain the best candidates, save them as Hugging Face models, and write the report.

    Returns:
        Teacher and retrained models, with the columns of ``search.frames.models``: ``chosen`` marks the model
        to use, and ``path`` is its directory for ``from_pretrained``.

    Raises:
        InputError: no candidate has been evaluated at the last rung.
    """
    with run.console.running(), at_work(run.context.config, run.directory) as workers:
        if not run.rungs(workers)[-1].records():
            raise InputError(
                "What is retrained was found by a search",
                f"no candidate has come to the last rung in {run.directory.path}",
                "Call search(run) first",
            )
        retrain_promoted(run, workers)
    return models_of(run.directory.path)


def extract(run: Run, **sizes: int) -> PreTrainedModel:
    """Extract a student of any size from the teacher, without distillation.

    Args:
        run: a run, whose ranking determines what is kept.
        sizes: sizes by axis, such as ``hidden=96, mlp=256, layers=6``; other axes keep the teacher's size.

    Returns:
        The student on the device of the run, in evaluation mode.

    Raises:
        InputError: the class has no such axis, or does not allow such a size.
    """
    named = {axis_named(name): size for name, size in sizes.items()}
    return run.context.extract(architecture_of_sizes(named, run.context.axis_map))


def _as_call(flags: Flags) -> str:
    """Return the Python call that makes the same run, for the report."""
    given = {field.name: getattr(flags, field.name) for field in fields(flags)}
    given = {name: value for name, value in given.items() if value != getattr(Flags(), name)}
    if flags.storage:
        given["storage"] = redact_password(flags.storage)
    return f"search.api.rank(Flags({', '.join(f'{name}={value!r}' for name, value in given.items())}))"


def _require_one_process() -> None:
    if is_multi_process():
        raise InputError(
            "Stages are called by one process",
            "several processes that train together were started",
            "Start python -m search.run that way, or this script without accelerate launch and torchrun",
        )
