"""Several processes that share the calibration blocks give the ranking that one gives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from evaluators.importance.activations import ActivationListener, all_reduced, merged_listeners, process_share
from evaluators.importance.moments import Covariance
from evaluators.importance.rank import rank
from space.cutting.ranking import Ranking
from tests.evaluators.importance.maps import map_of
from tests.evaluators.importance.one_of_many import CASES, FROM_DISK, case, ranking
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.made_once import made_once
from tests.warm_python import ends, warm_group

PROCESSES = 2


@pytest.fixture(scope="module")
def by_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which each of two processes has left its rankings."""

    def make(folder: Path) -> None:
        model, *_ = case(FROM_DISK)
        model.save_pretrained(folder / "teacher")
        command = [sys.executable, "-m", "tests.evaluators.importance.one_of_many", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        group = warm_group(command, PROCESSES, cwd=Path(__file__).parents[3], env=environment)
        statuses, _, err = ends(group, timeout=240)
        assert statuses == PROCESSES * [0], err[-4000:]

    return made_once(tmp_path_factory, "gathered", make)


@pytest.mark.parametrize("name", [*CASES, "from disk"])
def test_two_processes_rank_as_one(name: str, by_many: Path) -> None:
    one = ranking(FROM_DISK if name == "from disk" else name, None)
    both = [Ranking.load(by_many / str(process) / name, name) for process in range(PROCESSES)]
    for other in both:
        assert other is not None
        assert other.scores.keys() == one.scores.keys()
        for axis, scores in one.scores.items():
            # Activations are rounded as their place in memory has it: on AVX2 by up to 1e-5 in a variance.
            rounding = 1e-5 * float(scores.abs().max())
            torch.testing.assert_close(other.scores[axis], scores, rtol=1e-5, atol=rounding, msg=axis)
        assert (other.blocks is None) == (one.blocks is None)
        if one.blocks is not None and other.blocks is not None:
            torch.testing.assert_close(other.blocks, one.blocks, rtol=1e-6, atol=1e-6)
        if one.basis is not None:
            assert other.basis is not None
            torch.testing.assert_close(other.basis.energy, one.basis.energy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CASES, "from disk"])
def test_both_end_with_the_same_numbers(name: str, by_many: Path) -> None:
    first, second = (by_many / str(process) / name for process in range(PROCESSES))
    assert first.read_bytes() == second.read_bytes()


def test_a_process_may_have_no_token_of_an_expert() -> None:
    """Else the case of few tokens would not try what it is meant to."""
    model, axis_map, calibration, _ = case("few tokens")
    shares = [calibration[process::PROCESSES] for process in range(PROCESSES)]
    parts = [rank(model, axis_map, part, "").scores for part in shares]
    assert any((parts[0][axis] == 0).ne(parts[1][axis] == 0).any() for axis in parts[0])


def test_one_process_has_all_blocks_and_gathers_nothing() -> None:
    calibration, model = random_tokens(3, 4), tiny_model("llama")
    listener = ActivationListener(model, map_of(model.config))
    assert process_share(calibration, None) is calibration
    assert all_reduced(listener, None) is listener


def test_a_sum_that_only_one_has_is_kept() -> None:
    one, other, empty = Covariance(), Covariance(), Covariance()
    one.add(torch.tensor([[1.0, 2.0]]))
    other.add(torch.tensor([[3.0, 1.0]]))
    wanted = Covariance()
    wanted.add(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    both = merged_listeners({"a": one, "b": empty}, {"a": other, "c": empty})
    assert both.keys() == {"a", "b", "c"}
    torch.testing.assert_close(both["a"].mean, wanted.mean)
    torch.testing.assert_close(merged_listeners(Covariance(), wanted).mean, wanted.mean)
