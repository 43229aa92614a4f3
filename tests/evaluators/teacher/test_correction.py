"""A teacher trained on text: it reads it better, and is written as any model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from evaluators.distillation.loop import Checkpointing, DistillationResult, TrainingMonitor
from evaluators.distillation.optimizers import OptimizerName, training_bytes
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import Teacher, load_teacher
from evaluators.teacher.correction import correct_teacher, correction_rate, fingerprint_of, read_corrected
from evaluators.teacher.weights import weight_files
from space.input_error import InputError

CPU = torch.device("cpu")
#: Text that counts upwards: a teacher that has read it knows what comes next.
TOKENS = (torch.arange(24)[:, None] * 7 + torch.arange(32)[None]) % 257
SCHEDULE = Schedule(tokens=20 * 4 * 32, blocks=4, block=32, peak_rate=correction_rate(10_000))


def teacher_in(folder: Path, dtype: torch.dtype = torch.float32) -> Teacher:
    return load_teacher(str(folder), revision=None, device=CPU, dtype=dtype)


def run(
    teacher: Teacher,
    folder: Path,
    advance: Any = lambda tokens: None,
    seconds: float = 1e9,
    optimizer: OptimizerName = OptimizerName.ADAMW,
) -> DistillationResult:
    files = Checkpointing(path=folder / "correction.safetensors", key="key", seconds=seconds)
    watch = TrainingMonitor(advance=advance)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    path = folder / "teacher"
    return correct_teacher(teacher, TOKENS, SCHEDULE, accelerator, path, watch, files, optimizer)


def loss_of(teacher: Teacher) -> float:
    return validation_loss(teacher.model, TOKENS)


def stored(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: t for file in weight_files(folder, "it") for name, t in load_file(file).items()}


def test_the_rate_is_a_fifth_of_a_student_s() -> None:
    assert correction_rate(4 * 10**9) == pytest.approx(0.2 * peak_rate(4 * 10**9)) == pytest.approx(2e-5)


def test_it_reads_the_text_better_and_keeps_its_name(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = teacher_in(tiny_teacher)
    before = loss_of(teacher)
    outcome = run(teacher, tmp_path)
    assert outcome.tokens == SCHEDULE.steps * 128
    found = read_corrected(teacher, tmp_path / "teacher", torch.float32, trust_remote_code=False)
    assert loss_of(found) < before - 0.05
    assert (found.id, found.revision) == (str(tiny_teacher), None)
    assert found.fingerprint == fingerprint_of(tmp_path / "teacher", trust_remote_code=False)
    assert found.fingerprint != teacher.fingerprint
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert not found.model.training
    assert all(parameter.is_meta for parameter in teacher.model.parameters()), "its memory is given back"


def test_it_learns_in_float32_and_comes_back_to_its_dtypes(tiny_teacher: Path, tmp_path: Path) -> None:
    """Oracle: the same teacher loaded in float32, which needs no change to be trained so."""
    teacher = teacher_in(tiny_teacher)
    nn.Module.to(teacher.model, torch.bfloat16)
    teacher.model.save_pretrained(tmp_path / "half")
    teacher.tokenizer.save_pretrained(tmp_path / "half")
    half = teacher_in(tmp_path / "half", torch.bfloat16)
    run(half, tmp_path)
    (tmp_path / "full").mkdir()
    run(teacher_in(tmp_path / "half", torch.float32), tmp_path / "full")
    found = read_corrected(half, tmp_path / "teacher", torch.bfloat16, trust_remote_code=False)
    assert {t.dtype for t in stored(tmp_path / "teacher").values()} == {torch.bfloat16}
    assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}
    came, expected = stored(tmp_path / "half"), stored(tmp_path / "full" / "teacher")
    for name, tensor in stored(tmp_path / "teacher").items():
        assert torch.equal(tensor, expected[name])
        assert not torch.equal(tensor, came[name])


def test_stopped_and_begun_again_it_is_the_same(tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    run(teacher_in(tiny_teacher), tmp_path / "whole")
    told: list[int] = []

    def stop(tokens: int) -> None:
        told.append(tokens)
        if len(told) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(teacher_in(tiny_teacher), tmp_path / "stopped", stop, seconds=0)
    assert fingerprint_of(tmp_path / "stopped" / "teacher", trust_remote_code=False) is None
    again: list[int] = []
    run(teacher_in(tiny_teacher), tmp_path / "stopped", again.append, seconds=0)
    assert again[0] > 0, "it went on from a checkpoint"
    whole, stopped = stored(tmp_path / "whole" / "teacher"), stored(tmp_path / "stopped" / "teacher")
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_folder_that_is_not_whole_has_no_fingerprint(tiny_teacher: Path, tmp_path: Path) -> None:
    run(teacher_in(tiny_teacher), tmp_path)
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert fingerprint_of(tmp_path / "teacher", trust_remote_code=False) is None
    assert fingerprint_of(tmp_path / "nothing", trust_remote_code=False) is None


def test_a_teacher_that_does_not_fit_is_refused_before_any_work(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bytes a parameter in all, of which the loaded weights hold 4."""
    teacher = teacher_in(tiny_teacher)
    parameters = teacher.model.num_parameters()
    monkeypatch.setattr("evaluators.teacher.correction.free_bytes", lambda device: 12 * parameters - 1)
    with pytest.raises(InputError, match=r"and cpu has less.* Leave --correct-teacher out"):
        run(teacher, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("evaluators.teacher.correction.free_bytes", lambda device: 12 * parameters)
    run(teacher, tmp_path)


def test_in_eight_bits_it_needs_less_and_is_written_as_it_was_stored(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, before = teacher_in(tiny_teacher), stored(tiny_teacher)
    loss, eight = loss_of(teacher), OptimizerName.ADAMW_8BIT
    parameters = list(teacher.model.parameters())
    free = training_bytes((p.shape for p in parameters), eight).total - sum(p.nbytes for p in parameters)
    monkeypatch.setattr("evaluators.teacher.correction.free_bytes", lambda device: free)
    with pytest.raises(InputError, match="and cpu has less"):
        run(teacher_in(tiny_teacher), tmp_path)
    run(teacher, tmp_path, optimizer=eight)
    written = stored(tmp_path / "teacher")
    assert {name: one.dtype for name, one in written.items()} == {
        name: one.dtype for name, one in before.items()
    }
    found = read_corrected(teacher, tmp_path / "teacher", torch.float32, trust_remote_code=False)
    assert loss_of(found) < loss - 0.05
