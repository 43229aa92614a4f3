"""The published 8B shapes cut to 4B, planned for cards that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluators.distillation.optimizers import OptimizerName
from evaluators.metrics.capacity import capacity_of
from search.settings.flags import Flags
from search.settings.ledger import MARGIN, ledger_of, memory_of, run_ledger
from search.settings.resolution import resolve
from space.input_error import InputError


@pytest.fixture(autouse=True)
def a_large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets of all text are kept."""
    monkeypatch.setattr("search.settings.ledger.free_bytes", lambda folder: 10**13)


def planned(teacher: Path, memory: str, folder: Path, **others: str) -> Flags:
    return Flags(budget="4B", model=(str(teacher),), plan=True, device_memory=memory, out=folder, **others)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["qwen3_8b", "llama_8b"])
def test_80_gb_train_with_adamw_and_48_gb_with_8_bits(
    teacher: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(teacher)
    for memory, optimizer, most in (("80GB", "adamw", 80e9), ("48GB", "adamw-8bit", 48e9)):
        found = resolve(planned(directory, memory, tmp_path))
        assert (found.config.device, found.config.optimizer) == ("cuda", optimizer)
        assert not found.placement.sorted_stay
        ledger = run_ledger(found, tmp_path)
        assert ledger.fits
        trained = {needs.stage: needs for needs in ledger.stages}["retraining"]
        assert 0.4 * most < trained.device_bytes <= (1 - MARGIN) * most
        each = 4 if optimizer == "adamw" else 2
        assert trained.device["weights"] == pytest.approx(each * 4e9, rel=0.03)
        assert trained.device["gradients"] == trained.device["weights"]


def test_24_gb_are_refused_with_what_it_would_take(qwen3_8b: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolve(planned(qwen3_8b, "24GB", tmp_path))
    error = caught.value
    assert "needs" in error.values
    assert error.values.endswith("which has 24 GB")
    assert "lower --budget to" in error.remedy.lower()
    assert "GB more memory for the device" in error.remedy
    with pytest.raises(InputError) as forced:
        resolve(planned(qwen3_8b, "48GB", tmp_path, optimizer="adamw"))
    assert forced.value.remedy.startswith("Take --optimizer adamw-8bit")


def test_a_teacher_that_runs_beside_students_is_whole(
    qwen3_8b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that is ranked layer by layer, where the disk has no room for its targets."""
    resolved = resolve(planned(qwen3_8b, "80GB", tmp_path, targets="live"))
    placement = replace(resolved.placement, layer_by_layer=True, teacher_stays=False)
    capacity = capacity_of(torch.device("cuda"), 80 * 10**9)
    found = ledger_of(memory_of(resolved, tmp_path), capacity, placement, OptimizerName.ADAMW_8BIT)
    stages = {needs.stage: needs.device for needs in found.stages}
    assert stages["retraining"]["teacher"] == 2 * 8_190_735_360
    assert "teacher" not in stages["ranking"]
