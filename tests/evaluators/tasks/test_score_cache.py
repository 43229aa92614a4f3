"""Scores that are kept: nothing scored twice, whatever was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluators.tasks import likelihood
from evaluators.tasks.likelihood import ChoiceBatch, EncodedChoice, log_likelihoods
from evaluators.tasks.score_cache import ScoreCache
from tests.evaluators.tiny_models import tiny_model

CHOICES = [EncodedChoice(n // 2, n % 2, (1, *range(2, 4 + n)), 1) for n in range(8)]


def test_what_was_scored_before_an_interruption_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "batches_by_length", lambda lengths: [[n] for n in range(len(lengths))])
    model, cache = tiny_model(), ScoreCache(tmp_path / "tasks" / "quiz.jsonl", "a model")
    whole = log_likelihoods(model, CHOICES)
    scored: list[int] = []
    plain = ChoiceBatch.log_likelihoods

    def interrupted(self: ChoiceBatch, *rest: object) -> torch.Tensor:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(self.choices[0].ids))
        return plain(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ChoiceBatch, "log_likelihoods", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log_likelihoods(model, CHOICES, cache=cache)
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:-9])  # the last line was cut off as well
    first, scored[:] = scored[:2], []
    monkeypatch.setattr(ChoiceBatch, "log_likelihoods", plain)
    told: list[int] = []
    assert torch.equal(log_likelihoods(model, CHOICES, told.append, cache), whole)
    assert told == [2, *[1] * 6], "what was there is told at once"
    assert torch.equal(log_likelihoods(model, CHOICES, told.append, cache), whole)
    assert told[7:] == [8]
    assert len(first) == 2


def test_another_model_or_other_examples_have_scores_of_their_own(tmp_path: Path) -> None:
    one, other = (ScoreCache(tmp_path / "quiz.jsonl", key) for key in ("a", "b"))
    one.add([0, 2], torch.tensor([-1.0, -2.0], dtype=torch.float64))
    assert one.read(3).nan_to_num(9.0).tolist() == [-1.0, 9.0, -2.0]
    assert other.read(3).isnan().all()


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "quiz.jsonl", "a")
    cache.add([0], torch.tensor([torch.nan], dtype=torch.float64))
    assert not cache.path.exists()


@given(values=st.lists(st.floats(-1e6, 0), min_size=1, max_size=8), cut=st.integers(0, 400))
def test_a_file_that_ends_anywhere_gives_whole_lines_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], cut: int
) -> None:
    cache = ScoreCache(tmp_path_factory.mktemp("cut") / "quiz.jsonl", "a")
    for number, value in enumerate(values):
        cache.add([number], torch.tensor([value], dtype=torch.float64))
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:cut])
    for number, found in enumerate(cache.read(len(values)).tolist()):
        assert found != found or found == values[number]
    cache.add([0], torch.tensor([-5.0], dtype=torch.float64))
    assert float(cache.read(len(values))[0]) == -5.0
