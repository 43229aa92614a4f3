"""Which branches a search keeps, and which trainings go on from which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from optuna.storages import InMemoryStorage

from evaluators.distillation.checkpoint import write_tensors
from evaluators.distillation.saving import Checkpointing
from search.rungs.bracket import best_first
from search.rungs.evaluation import SEARCH, Evaluation
from search.rungs.rung import Rung
from search.stages.run_context import RunContext
from search.stages.trial import (
    remove_branches,
    remove_unneeded_branches,
    retraining_branch,
    rung_branch,
    tokens_spared,
)
from space.axes.architecture import Architecture
from tests.search.synthetic import Evaluator, demo_space, make_search, open_rungs_in, run_config

ONE, OTHER = Architecture(64, 128, 4, 2, 5), Architecture(64, 96, 4, 2, 6)
WSD = {"schedule": "wsd"}


def bench_in(folder: Path, **config: Any) -> RunContext:
    ranking = SimpleNamespace(fingerprint="ranked")
    return cast(
        RunContext,
        SimpleNamespace(config=run_config(**WSD | config), directory=folder, ranking=ranking),
    )


def branch(folder: Path, architecture: Architecture, rung: int, step: int = 3) -> Path:
    path = folder / "branches" / f"{architecture.label}-rung{rung}.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, {"key": "a branch", "step": step})
    return path


def test_a_cosine_has_no_branches(tmp_path: Path) -> None:
    context = bench_in(tmp_path, schedule="cosine")
    files = Checkpointing(path=tmp_path / "it", key="it")
    assert rung_branch(context, ONE, 1) is None
    assert tokens_spared(context, None) == 0
    assert retraining_branch(context, ONE, files) == files


def test_each_rung_goes_on_from_the_one_below_and_retraining_from_the_last(tmp_path: Path) -> None:
    context = bench_in(tmp_path)
    first, second = rung_branch(context, ONE, 1), rung_branch(context, ONE, 2)
    assert first is not None
    assert second is not None
    retraining = retraining_branch(context, ONE, Checkpointing(path=tmp_path / "it", key="it", seconds=5))
    assert (first.start, second.start, retraining.start) == (None, first.branch, second.branch)
    assert (retraining.branch, retraining.path, retraining.seconds) == (None, tmp_path / "it", 5)
    assert first.stem == second.stem == retraining.stem
    assert len({first.path, first.branch, second.path, second.branch}) == 4
    assert len({first.key, second.key}) == 2
    other = rung_branch(context, OTHER, 1)
    assert other is not None
    assert other.stem != first.stem
    context.ranking.__dict__["fingerprint"] = "another"
    turned = rung_branch(context, ONE, 1)
    assert turned is not None
    assert (turned.stem, turned.key) != (first.stem, first.key), "another basis cuts other students"


def test_what_a_branch_spares_is_counted(tmp_path: Path) -> None:
    """A step is two blocks of 128 tokens."""
    context = bench_in(tmp_path)
    assert (
        tokens_spared(context, rung_branch(context, ONE, 1))
        == tokens_spared(context, rung_branch(context, ONE, 2))
        == 0
    )
    branch(tmp_path, ONE, 1, step=3)
    assert tokens_spared(context, rung_branch(context, ONE, 1)) == 0
    assert tokens_spared(context, rung_branch(context, ONE, 2)) == 3 * 2 * 128


def test_one_that_was_retrained_leaves_nothing(tmp_path: Path) -> None:
    context = bench_in(tmp_path)
    for rung in (1, 2):
        branch(tmp_path, ONE, rung)
    left = branch(tmp_path, OTHER, 2)
    remove_branches(context, ONE)
    assert list((tmp_path / "branches").iterdir()) == [left]
    remove_branches(context, OTHER)
    remove_branches(context, OTHER)
    assert list(tmp_path.iterdir()) == []


def test_a_search_keeps_what_may_still_be_needed(tmp_path: Path) -> None:
    """Every evaluation leaves a branch; none that goes on finds its own removed, and few lie there."""
    config = run_config(**WSD, promote=2, retrain_baselines=True, trials=16, rung_candidates=(9, 3))
    context = bench_in(tmp_path, **vars(config))
    rungs = open_rungs_in(InMemoryStorage(), config, demo_space())
    most, lost = 0, []

    class Branching(Evaluator):
        def evaluate(self, architecture: Architecture, rung: int, advance: Any) -> Evaluation:
            nonlocal most
            files = rung_branch(context, architecture, rung) if rung else None
            if files is not None:
                if files.start is not None and not files.start.exists():
                    lost.append(architecture)
                branch(tmp_path, architecture, rung)
            most = max(most, len(list((tmp_path / "branches").glob("*"))))
            return super().evaluate(architecture, rung, advance)

        def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
            remove_unneeded_branches(context, rungs, candidates)

    make_search(config, demo_space(), rungs, Branching()).run()
    assert lost == []
    assert most < 9 + 3, "fewer than there were evaluations"
    assert left(tmp_path, 1) == set()
    assert left(tmp_path, 2) >= retrained(rungs, config.objectives, 2)
    assert len(left(tmp_path, 2)) <= config.rung_candidates[1]


def left(folder: Path, rung: int) -> set[str]:
    ending = f"-rung{rung}.safetensors"
    return {path.name.removesuffix(ending) for path in (folder / "branches").glob(f"*{ending}")}


def retrained(rungs: list[Rung], objectives: tuple[str, ...], promote: int) -> set[str]:
    """The promoted, and the baselines that came so far."""
    top = rungs[-1].complete()
    order = best_first([record.values(objectives) for record in top])
    return {top[place].label for place in order[:promote]} | {r.label for r in top if r.origin != SEARCH}


def test_tidying_a_run_without_branches_touches_nothing(tmp_path: Path) -> None:
    context = bench_in(tmp_path, schedule="cosine")
    (tmp_path / "branches").mkdir()
    stray = tmp_path / "branches" / "mine-rung1.safetensors"
    stray.touch()
    remove_unneeded_branches(context, [], [])
    assert stray.exists()
