"""Two processes come to the weights of one, replicated or sharded, in float error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluators.distillation.processes import blocks_per_process
from tests.evaluators.distillation.conftest import forget
from tests.evaluators.distillation.many_processes import FEW, MORE, STEPS, main
from tests.evaluators.tiny_models import tiny_student, weights
from tests.made_once import made_once
from tests.warm_python import ends, warm_group

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what trainings came to: run once, also where several processes share the tests."""
    return made_once(tmp_path_factory, "processes", lambda path: train(path, FEW))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what more trainings came to."""
    return made_once(tmp_path_factory, "more processes", lambda path: train(path, MORE))


def train(folder: Path, trained: tuple[str, ...]) -> None:
    """In this process alone, and in two others."""
    main(folder, "alone", trained)
    forget()
    script = ["-m", "tests.evaluators.distillation.many_processes", str(folder), *trained]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    group = warm_group([sys.executable, *script], 2, cwd=ROOT, env=environment)
    statuses, out, err = ends(group, timeout=200)
    assert statuses == [0, 0], out + err


def assert_same(folder: Path, one: str, other: str) -> None:
    """Of two trainings: losses of the steps and the validations, and weights."""
    wanted = json.loads((folder / f"{one}.json").read_text())
    found = json.loads((folder / f"{other}.json").read_text())
    assert found["recent"] == pytest.approx(wanted["recent"], rel=1e-3)
    assert len(found["recent"]) == STEPS
    assert found["curve"] == pytest.approx(wanted["curve"], rel=1e-3)
    weights_of_one, weights_of_other = (load_file(folder / f"{name}.safetensors") for name in (one, other))
    assert weights_of_one.keys() == weights_of_other.keys()
    for name, value in weights_of_one.items():
        torch.testing.assert_close(weights_of_other[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@pytest.mark.parametrize("trained", FEW)
def test_two_processes_are_one(folder: Path, kind: str, trained: str) -> None:
    """True where the head is the embedding."""
    assert_same(folder, f"alone {trained}", f"{kind} {trained}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@pytest.mark.parametrize("trained", MORE)
def test_two_processes_are_one_whatever_is_trained(more: Path, kind: str, trained: str) -> None:
    assert_same(more, f"alone {trained}", f"{kind} {trained}")


def have_learnt(folder: Path, trained: tuple[str, ...]) -> None:
    """No tensor is as it was."""
    for case in trained:
        values = load_file(folder / f"alone {case}.safetensors")
        start = weights(tiny_student(tie_word_embeddings=case.endswith("True")))
        assert min(float((values[name] - value).abs().max()) for name, value in start.items()) > 0.003


def test_they_have_learnt(folder: Path) -> None:
    have_learnt(folder, FEW)


@pytest.mark.slow
def test_more_have_learnt(more: Path) -> None:
    have_learnt(more, MORE)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_stopped_and_started_again_two_are_as_undisturbed(folder: Path, kind: str) -> None:
    one, other = (
        load_file(folder / f"{kind} {name}.safetensors")
        for name in ("uneven, by single blocks False", "resumed")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_where_one_runs_out_of_memory_all_take_smaller_micro_batches(folder: Path) -> None:
    assert_same(folder, "alone even False", "replicated cramped")


def test_gradients_are_exchanged_once_a_step(folder: Path) -> None:
    """Six blocks, one at a time: three micro-batches a process; all weights fit in one bucket."""
    assert json.loads((folder / "exchanges.json").read_text()) == STEPS


@pytest.mark.parametrize(("blocks", "processes", "each"), [(4, 2, 2), (5, 2, 3), (1, 2, 1), (8, 1, 8)])
def test_blocks_of_a_process(blocks: int, processes: int, each: int) -> None:
    assert blocks_per_process(blocks, processes) == each


def test_copies_in_eight_bits_stay_equal_bit_by_bit(folder: Path) -> None:
    one, other = (load_file(folder / f"eight bits {number}.safetensors") for number in (0, 1))
    start = weights(tiny_student(hidden_size=64, intermediate_size=65))
    assert one.keys() == other.keys() == start.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name])
        assert value.dtype == torch.bfloat16
        assert not torch.equal(value.float(), start[name])
