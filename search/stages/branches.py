"""Where a candidate's trainings go on from one another, if the schedule is warm-up, stable, decay.

Until its rate begins to fall, a short training is the beginning of a longer one (arXiv 2404.06395). What it
came to there is kept as a branch, from which the next rung, and at the end retraining, go on. A branch is as
large as three copies of the student, so only those stay that may still be needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.distillation.checkpoint import read_about
from evaluators.distillation.saving import Checkpointing
from evaluators.distillation.schedule import Shape
from search.rungs.evaluation import SEARCH, Record
from search.rungs.promotion import dominates
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from search.stages.workbench import Workbench
from space.axes.architecture import Architecture


def of_rung(bench: Workbench, architecture: Architecture, rung: int) -> Checkpointing | None:
    """The files of a short distillation; None if its schedule has no branches, and nothing is kept.

    Args:
        bench: of the run.
        architecture: of the candidate.
        rung: from 1.
    """
    if not _branching(bench.config):
        return None
    path = _branch(bench.directory, architecture, rung)
    key = f"{architecture.label} rung {rung} {bench.ranking.fingerprint}"
    files = Checkpointing(path=path.with_suffix(".checkpoint"), key=key, branch=path)
    return _from_below(bench, architecture, rung, files)


def of_retraining(bench: Workbench, architecture: Architecture, files: Checkpointing) -> Checkpointing:
    """The files of a retraining, with the branch of the last rung to go on from if there may be one."""
    return _from_below(bench, architecture, bench.config.rungs, files) if _branching(bench.config) else files


def spared(bench: Workbench, files: Checkpointing | None) -> int:
    """Tokens that a training need not read again, because it goes on from a branch that is there."""
    about = read_about(files.start) if files is not None and files.start is not None else None
    return about["step"] * bench.config.batch_blocks * bench.config.block if about else 0


def tidy(bench: Workbench, rungs: Sequence[Rung], bracket: Sequence[int]) -> None:
    """Remove the branches that no training will go on from.

    At each rung those stay that are on the next one, and those that wait for it and may still go up, of as
    many as it takes in; at the last, those that may be retrained.

    Args:
        bench: of the run.
        rungs: all, rung 0 first.
        bracket: how many candidates each rung takes.
    """
    if not _branching(bench.config):
        return
    objectives = bench.config.objectives
    for rung in rungs[1:-1]:
        above = rungs[rung.index + 1]
        done = {record.architecture for record in above.records()}
        left = bracket[above.index] - above.count()
        waiting = [r for r in rung.feasible() if r.architecture not in above.entered()]
        stay = (above.entered() - done) | set(_may_be_best(waiting, objectives, left))
        _keep(bench.directory, rung.index, stay)
    top = rungs[-1].feasible()
    hand_made = [r.architecture for r in top if r.origin != SEARCH and bench.config.retrain_baselines]
    _keep(
        bench.directory, rungs[-1].index, {*_may_be_best(top, objectives, bench.config.promote), *hand_made}
    )


def forget(bench: Workbench, architecture: Architecture) -> None:
    """Remove the branches of one that was retrained, and the folder after the last."""
    for rung in range(1, bench.config.rungs):
        _branch(bench.directory, architecture, rung).unlink(missing_ok=True)
    with suppress(OSError):  # not the last, or another worker was quicker
        (bench.directory / "branches").rmdir()


def _branching(config: RunConfig) -> bool:
    return config.schedule == Shape.WSD


def _from_below(
    bench: Workbench, architecture: Architecture, rung: int, files: Checkpointing
) -> Checkpointing:
    start = _branch(bench.directory, architecture, rung - 1) if rung > 1 else None
    return replace(files, start=start, stem=f"{architecture.label} {bench.ranking.fingerprint}")


def _branch(directory: Path, architecture: Architecture, rung: int) -> Path:
    return directory / "branches" / f"{architecture.label}-rung{rung}.safetensors"


def _may_be_best(records: Sequence[Record], objectives: tuple[str, ...], number: int) -> list[Architecture]:
    """Those that may be among the next so many: fewer than that many others are better in everything."""
    if number <= 0 or not records:
        return []
    better = dominates(np.asarray([record.values(objectives) for record in records])).sum(0)
    return [record.architecture for record, above in zip(records, better, strict=True) if above < number]


def _keep(directory: Path, rung: int, stay: set[Architecture]) -> None:
    wanted = {_branch(directory, architecture, rung) for architecture in stay}
    for path in (directory / "branches").glob(f"*-rung{rung}.safetensors"):
        if path not in wanted:
            path.unlink()
