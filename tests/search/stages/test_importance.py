"""A run ranks its teacher once, and hears in the same pass what repairs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from evaluators.corpus.corpus import Corpus
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from evaluators.teacher import Teacher
from search.settings.resolution import Resolved
from search.stages.importance import load_or_rank, repair_of
from search.terminal.console import Console
from space.axes.architecture import Axis
from space.counting.budget import Budget
from space.cutting.basis import BasisName
from space.cutting.moments import Moments
from space.discovery.discovery import discover
from space.enumeration.enumeration import enumerate_space
from space.verification.contract import random_teacher
from tests.search.synthetic import run_config

CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
CALIBRATION = torch.randint(0, 48, (6, 10), generator=torch.Generator().manual_seed(0))


class Quiet:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.forecast = SimpleNamespace(skip=lambda kind, tokens: None)

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def work(self, *_: Any) -> Iterator[Callable[[int], None]]:
        yield lambda tokens: None


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


def variant(**config: Any) -> Resolved:
    axis_map = discover(CONFIG).axis_map
    space = enumerate_space(axis_map, Budget(12_000, 0.3, value_bytes=4))
    parts = {
        "config": run_config(**config),
        "axis_map": axis_map,
        "space": space,
        "basis": BasisName.COORDINATE,
    }
    return cast(Resolved, SimpleNamespace(**parts))


def forwards(teacher: Teacher) -> list[int]:
    """Grows by one with every forward pass."""
    seen: list[int] = []
    teacher.model.model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_scores_and_moments_come_from_one_pass(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    run, console = variant(repair=("least-squares",)), cast(Console, Quiet())
    alone = gather_moments(teacher.model, run.axis_map, CALIBRATION, "")
    plain = rank(teacher.model, run.axis_map, CALIBRATION, "")
    seen = forwards(teacher)
    places = (tmp_path / "ranking.safetensors", tmp_path / "moments.safetensors")
    ranking = load_or_rank(run, teacher, corpus, [places[0]], places[1], console)
    repair = repair_of(run, teacher, corpus, ranking, places[1], console)
    assert len(seen) == 1, "60 tokens are one batch"
    assert repair.least_squares
    assert repair.moments is not None
    for name, read in alone.sorted_by(run.axis_map, ranking).reads.items():
        torch.testing.assert_close(repair.moments.reads[name].second, read.second)
    for axis, scores in plain.scores.items():
        torch.testing.assert_close(ranking.scores[axis], scores)


def test_what_was_made_is_not_made_again(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    run, quiet = variant(repair=("norm-scale",), rounds=2), Quiet()
    places = (tmp_path / "ranking.safetensors", tmp_path / "moments.safetensors")
    for again in (False, True):
        seen = forwards(teacher)
        ranking = load_or_rank(run, teacher, corpus, [places[0]], places[1], cast(Console, quiet))
        repair = repair_of(run, teacher, corpus, ranking, places[1], cast(Console, quiet))
        assert repair.norm_scale
        assert (seen == []) is again
    assert quiet.said == [f"reusing the ranking in {places[0]}: same teacher, text and method"]
    other = replace(run.config, rounds_order="width-depth")
    another = cast(Resolved, SimpleNamespace(**{**vars(run), "config": other}))
    seen = forwards(teacher)
    found = load_or_rank(another, teacher, corpus, [places[0]], places[1], cast(Console, quiet))
    assert seen, "another order of rounds is another ranking"
    assert "width then depth" in found.method


def test_no_repair_needs_no_moments(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    path, console = tmp_path / "moments.safetensors", cast(Console, Quiet())
    for names in ((), ("head-residual",)):
        run = variant(repair=names)
        ranking = load_or_rank(run, teacher, corpus, [tmp_path / "ranking"], path, console)
        repair = repair_of(run, teacher, corpus, ranking, path, console)
        assert repair.moments is None
        assert bool(repair.heads) is bool(names)
        assert Moments.load(path, "anything") is None
        assert Axis.HEADS in ranking.scores
