"""Which basis of hidden a run takes, and how it finds out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

from evaluators.distillation.loop import DistillationResult, DivergenceError
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages import preparation
from search.stages.importance import Importance
from search.stages.preparation import BasisCandidate, basis_candidates, score_in_basis, variants_of
from search.stages.run_context import BasisScore, BasisTrial, RunContext
from search.stages.task_scores import NO_TASKS
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.cutting.basis import Basis, BasisName
from space.cutting.ranking import Ranking
from space.enumeration.hand_made import baselines
from tests.search.synthetic import run_config


def tied(**others: Any) -> PretrainedConfig:
    """Small, and a quarter of it is vocabulary."""
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **others,
    )


@pytest.fixture
def resolved(tmp_path: Path) -> Callable[..., Resolved]:
    def of(config: PretrainedConfig, **others: Any) -> Resolved:
        config.save_pretrained(tmp_path / "model")
        flags = Flags(budget="60%", model=(str(tmp_path / "model"),), device="cpu")
        return resolve(replace(flags, **others))

    return of


def test_students_that_cut_hidden_are_tried_in_either_basis(demo_config: Path) -> None:
    run = resolve(Flags(budget="1M", model=(str(demo_config),), device="cpu"))
    assert run.config.basis == "auto"
    found, whole = baselines(run.space, run.axis_map.teacher), run.axis_map.teacher.hidden
    assert {origin for origin, one in found.items() if one.hidden < whole} == {"uniform"} < found.keys()
    tried = basis_candidates(run)
    assert [(one.basis, one.origin) for one in tried] == [("coordinate", "uniform"), ("weighted", "uniform")]
    assert {one.architecture for one in tried} == {found["uniform"]}
    assert run.work.trial_students(run.config) == 2


def test_where_no_baseline_cuts_hidden_all_are_tried(demo_config: Path) -> None:
    run = resolve(Flags(budget="1M", model=(str(demo_config),), device="cpu", sizes=("hidden=88..128",)))
    whole = {name: replace(one, hidden=128) for name, one in run.compared_in_bases.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.settings.resolved.baselines", lambda *_: whole)
        assert run.compared_in_bases == whole


def test_a_tied_teacher_tries_the_same_students_in_either_basis(resolved: Callable[..., Resolved]) -> None:
    run = resolved(tied())
    variants = variants_of(run)
    assert list(variants) == ["coordinate", "weighted"]
    tried = basis_candidates(run)
    each = {
        basis: [(one.origin, one.architecture) for one in tried if one.basis == basis] for basis in variants
    }
    assert each["coordinate"] == each["weighted"] != []
    assert run.turned is not None
    assert run.turned.space is run.space
    assert run.turned.axis_map.roles == run.axis_map.roles


class TestABasisThatChangesTheTeacher:
    """Where norms cannot be folded and half of the coordinates do not suffice."""

    @staticmethod
    def ranking(added: float) -> Ranking:
        basis = Basis(torch.eye(64), torch.ones(64), 32, {}, added)
        return Ranking({}, 4, "", "", basis=basis)

    def test_it_is_not_tried(self, resolved: Callable[..., Resolved], tmp_path: Path) -> None:
        run, made, trained = resolved(tied()), [], []
        rankings = {BasisName.COORDINATE: Ranking({}, 4, "", ""), BasisName.WEIGHTED: self.ranking(0.02)}
        importance = SimpleNamespace(rank=lambda of: {one.basis: rankings[one.basis] for one in of})

        def score(candidate: BasisCandidate, *_: Any) -> BasisScore:
            trained.append(candidate.basis)
            return BasisScore(candidate.basis, candidate.origin, candidate.architecture.label, 100, 3.0)

        def context(variant: Resolved) -> Any:
            made.append(variant.basis.value)
            return Chosen(cast(Ranking, SimpleNamespace(save=lambda path: None)))

        (tmp_path / "run").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preparation, "score_in_basis", score)
            found = preparation._in_best_basis(
                run,
                cast(Importance, importance),
                context,
                RunDirectory(tmp_path / "run"),
                Console(quiet=True),
            )
        assert set(made) == set(trained) == {"coordinate"}
        assert cast(Any, found).basis_trial.basis == "coordinate"

    def test_named_it_is_refused_with_what_it_adds(self) -> None:
        assert not preparation._changes_teacher(self.ranking(0.009))
        assert preparation._changes_teacher(self.ranking(0.02))
        message = str(preparation._costly_basis(BasisName.WEIGHTED, self.ranking(0.02)))
        assert "the weighted one adds 0.020 even where it keeps 32 of 64 coordinates" in message
        assert "Take --basis coordinate" in message


@dataclass(frozen=True)
class Chosen:
    """What is left of a context."""

    ranking: Ranking
    basis_trial: BasisTrial | None = None


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        pytest.param(tied(), {"basis": "coordinate"}, id="named"),
        pytest.param(tied(), {"keep": ("hidden",)}, id="hidden stays"),
    ],
)
def test_where_nothing_is_open_nothing_is_tried(
    resolved: Callable[..., Resolved], config: PretrainedConfig, flags: dict[str, Any]
) -> None:
    run = resolved(config, **flags)
    assert (run.config.basis, run.basis, run.turned) == ("coordinate", BasisName.COORDINATE, None)
    assert basis_candidates(run) == []


def test_a_basis_that_is_named_is_taken(resolved: Callable[..., Resolved]) -> None:
    run = resolved(tied(), basis="principal")
    assert (run.config.basis, run.basis, run.turned) == ("principal", BasisName.PRINCIPAL, None)


def context(run: Resolved, train: Callable[..., Any]) -> RunContext:
    whole = {
        "config": run_config(objectives=("loss",)),
        "space": run.space,
        "extract": lambda architecture: "a student",
        "costs": lambda architecture: {},
        "train": train,
        "targets": None,
        "tasks": NO_TASKS,
        "ranking": SimpleNamespace(fingerprint="a ranking"),
    }
    return cast(RunContext, SimpleNamespace(**whole))


def test_the_loss_at_the_end_counts_and_a_failure_is_no_loss(demo_config: Path) -> None:
    run = resolve(Flags(budget="1M", model=(str(demo_config),), device="cpu"))
    contestant = basis_candidates(run)[0]

    def trains(*_: Any, **__: Any) -> DistillationResult:
        return DistillationResult(1000, [(500, 3.5), (1000, 3.0)], 1.0)

    def diverges(*_: Any, **__: Any) -> DistillationResult:
        raise DivergenceError("the loss is nan at step 3")

    parameters = run.space.parameters_of(contestant.architecture)
    label = contestant.architecture.label
    expected = BasisScore("coordinate", "uniform", label, parameters, 3.0)
    assert score_in_basis(contestant, context(run, trains), lambda tokens: None) == expected
    assert score_in_basis(contestant, context(run, diverges), lambda tokens: None) == replace(
        expected, loss=None
    )


class TestTheTrial:
    TRIED = (
        BasisScore("coordinate", "uniform", "a", 100, 3.25),
        BasisScore("coordinate", "depth", "b", 100, 3.0),
        BasisScore("weighted", "uniform", "c", 100, None),
        BasisScore("weighted", "depth", "d", 100, 2.5),
    )

    def test_the_best_student_decides(self) -> None:
        assert BasisTrial(1000, self.TRIED).basis == "weighted"
        assert BasisTrial(1000, self.TRIED[:3]).basis == "coordinate"
        equal = replace(self.TRIED[3], loss=3.0)
        assert BasisTrial(1000, [*self.TRIED[:3], equal]).basis == "coordinate", "the simpler one wins ties"

    def test_it_says_why(self) -> None:
        assert BasisTrial(49_152, self.TRIED).reason == (
            "hidden is cut along the weighted basis: after 49,152 tokens the best hand-made student has a "
            "loss of 3.0000 (coordinate) and 2.5000 (weighted)"
        )

    @pytest.mark.parametrize("tried", [(), (TRIED[2],)])
    def test_where_no_student_could_be_trained_it_says_so(self, tried: tuple[BasisScore, ...]) -> None:
        trial = BasisTrial(1000, tried)
        assert trial.basis == (tried[0].basis if tried else "coordinate")
        assert trial.reason == (
            f"hidden is cut along the {trial.basis} basis: no hand-made student could be trained to tell"
        )

    def test_what_was_tried_is_not_lost(self, tmp_path: Path) -> None:
        path = tmp_path / "basis.json"
        trial = BasisTrial.load(path, 1000)
        assert trial == BasisTrial(1000, [])
        for one in self.TRIED:
            trial = trial.plus(one)
            trial.save(path)
            assert BasisTrial.load(path, 1000) == trial
