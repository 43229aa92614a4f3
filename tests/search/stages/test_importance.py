"""A run ranks its teacher once for all bases, and hears in the same pass what repairs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from evaluators.corpus.corpus import Corpus
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from evaluators.metrics.latency import Workload
from evaluators.teacher import Teacher
from search.settings.costs import Costs
from search.settings.resolved import Resolved
from search.stages.importance import Importance
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget
from space.cutting.basis import BasisName
from space.enumeration.enumeration import enumerate_space
from space.verification.contract import random_teacher
from space.verification.verification import verified_axis_map
from tests.search.synthetic import run_config

CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)
CALIBRATION = torch.randint(0, 48, (6, 10), generator=torch.Generator().manual_seed(0))


class Quiet:
    """A console that keeps what is said, and counts tokens that are planned, done and left out."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.planned, self.advanced, self.skipped = 0, 0, 0
        self.forecast = SimpleNamespace(skip=self.skip)

    def say(self, text: str) -> None:
        self.said.append(text)

    def skip(self, _: str, tokens: int) -> None:
        self.skipped += tokens

    @contextmanager
    def work(self, _: str, __: str, tokens: int) -> Iterator[Callable[[int], None]]:
        self.planned += tokens
        yield self.advance

    def advance(self, tokens: int) -> None:
        self.advanced += tokens


@pytest.fixture
def teacher(byte_tokenizer: PreTrainedTokenizerFast) -> Teacher:
    return Teacher(
        id="t",
        revision=None,
        directory=Path(),
        model=random_teacher(CONFIG),
        tokenizer=byte_tokenizer,
        fingerprint="of the teacher",
        stored_dtype=torch.float32,
    )


@pytest.fixture
def corpus() -> Corpus:
    return cast(Corpus, SimpleNamespace(calibration=CALIBRATION, block=10))


@cache
def axis_map_in(basis: BasisName) -> AxisMap:
    return verified_axis_map(CONFIG, basis)


def variant(of: BasisName = BasisName.COORDINATE, turned: Any = None, **config: Any) -> Resolved:
    axis_map = axis_map_in(of)
    config = {"calibration_blocks": 6, "block": 10, "depth_by": "perplexity", "basis": of.value, **config}
    space = enumerate_space(axis_map, Budget(12_000, 0.3, value_bytes=4))
    parts: dict[str, Any] = {"axis_map": axis_map, "space": space, "basis": of, "whole": space}
    parts["teacher_parameters"] = 0
    costs = Costs(axis_map, Workload(), 4)
    return Resolved(run_config(**config), **parts, costs=costs, turned=turned)


def both(**config: Any) -> list[Resolved]:
    """A run that tries two bases, in each of them."""
    turned = variant(BasisName.WEIGHTED, **{**config, "basis": "auto"})
    return [variant(turned=turned, **{**config, "basis": "auto"}), turned]


def importance(run: Resolved, teacher: Teacher, corpus: Corpus, folder: Path, quiet: Quiet) -> Importance:
    return Importance(run, teacher, corpus, RunDirectory(folder), cast(Console, quiet))


def forwards(teacher: Teacher) -> list[int]:
    """Grows by one with every forward pass."""
    seen: list[int] = []
    teacher.model.model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_scores_and_moments_come_from_one_pass(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    run = variant(repair=("least-squares",), depth_by="influence")
    alone = gather_moments(teacher.model, run.axis_map, CALIBRATION, "")
    plain = rank(teacher.model, run.axis_map, CALIBRATION, "")
    seen = forwards(teacher)
    stage = importance(run, teacher, corpus, tmp_path, Quiet())
    ranking = stage.rank([run])[run.basis]
    repair = stage.repair_of(run, ranking)
    assert len(seen) == 1, "60 tokens are one batch"
    assert repair.least_squares
    assert repair.moments is not None
    for name, read in alone.sorted_by(run.axis_map, ranking).reads.items():
        torch.testing.assert_close(repair.moments.reads[name].second, read.second)
    for axis, scores in plain.scores.items():
        torch.testing.assert_close(ranking.scores[axis], scores)


def test_two_bases_take_the_passes_of_one(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    repair = ("least-squares",)
    alone = [variant(basis, repair=repair) for basis in (BasisName.COORDINATE, BasisName.WEIGHTED)]
    wanted = []
    for run in alone:
        (tmp_path / run.basis).mkdir()
        stage = importance(run, teacher, corpus, tmp_path / run.basis, Quiet())
        seen = forwards(teacher)
        ranking = stage.rank([run])[run.basis]
        wanted.append((ranking, stage.repair_of(run, ranking).moments))
        passes = len(seen)
    variants, quiet = both(repair=repair), Quiet()
    stage = importance(variants[0], teacher, corpus, tmp_path, quiet)
    seen = forwards(teacher)
    found = stage.rank(variants)
    again = [stage.repair_of(run, found[run.basis]).moments for run in variants]
    assert len(seen) == passes
    assert quiet.planned == variants[0].ranking_tokens
    assert quiet.advanced == pytest.approx(quiet.planned, abs=10)
    for run, (ranking, moments), repaired in zip(variants, wanted, again, strict=True):
        for axis, scores in ranking.scores.items():
            assert torch.equal(found[run.basis].scores[axis], scores)
        assert moments is not None
        assert repaired is not None
        assert repaired.norm_of == moments.norm_of
        assert repaired.energies.keys() == moments.energies.keys()
        assert repaired.stream.keys() == moments.stream.keys()
        for name, second in moments.stream.items():
            torch.testing.assert_close(repaired.stream[name], second)
        for name, read in moments.reads.items():
            torch.testing.assert_close(repaired.reads[name].second, read.second)


def test_layers_are_scored_once_even_if_the_run_was_cut_short(
    teacher: Teacher, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = both()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stage = importance(variants[0], teacher, corpus, tmp_path, Quiet())
    with monkeypatch.context() as patch:
        patch.setattr("search.stages.importance.rank_in_bases", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.rank(variants)
    seen, quiet = forwards(teacher), Quiet()
    importance(variants[0], teacher, corpus, tmp_path, quiet).rank(variants)
    assert len(seen) == 1, "only the pass for the widths"
    assert quiet.planned + quiet.skipped == variants[0].ranking_tokens


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_was_made_is_not_made_again(
    teacher: Teacher, corpus: Corpus, tmp_path: Path, rounds: int
) -> None:
    run, quiet = variant(repair=("norm-scale",), rounds=rounds), Quiet()
    for again in (False, True):
        seen, stage = forwards(teacher), importance(run, teacher, corpus, tmp_path, quiet)
        ranking = stage.rank([run])[run.basis]
        assert stage.repair_of(run, ranking).norm_scale
        assert (seen == []) is again
    path = RunDirectory(tmp_path).ranking
    assert quiet.said == [f"reusing the ranking in {path}: same teacher, text and method"]
    other = replace(run.config, rounds_order="width-depth")
    another = replace(run, config=other)
    seen = forwards(teacher)
    found = importance(another, teacher, corpus, tmp_path, quiet).rank([another])[run.basis]
    assert seen, "another order of rounds is another ranking"
    assert "width then depth" in found.method


def test_no_repair_needs_no_moments(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    for names in ((), ("head-residual",)):
        run = variant(repair=names)
        stage = importance(run, teacher, corpus, tmp_path, Quiet())
        ranking = stage.rank([run])[run.basis]
        repair = stage.repair_of(run, ranking)
        assert repair.moments is None
        assert bool(repair.heads) is bool(names)
        assert not RunDirectory(tmp_path).moments.exists()
        assert Axis.HEADS in ranking.scores
