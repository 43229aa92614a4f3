"""Which optimiser a run trains by, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.distillation.optimizers import OptimizerName
from search.settings.flags import Flags
from search.settings.optimizer import check_installed, eight_bits_refused, optimizer_for, precision_for
from search.settings.resolution import resolve
from space.input_error import InputError
from tests.search.planning.test_plan import resolved_once
from tests.search.settings.test_resolution import flags

EIGHT = Flags(optimizer="adamw-8bit")


def test_the_configuration_holds_the_optimiser_and_its_precision(demo_config: Path) -> None:
    config = resolve(flags(demo_config, budget="60%", optimizer="adamw-8bit", device="cpu")).config
    assert (config.optimizer, config.dtype) == ("adamw-8bit", "bfloat16")
    config = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu")).config
    assert config.optimizer == "adamw"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_what_was_asked_for_is_taken(device: str) -> None:
    assert optimizer_for(Flags(), device) is OptimizerName.ADAMW
    assert optimizer_for(Flags(optimizer="adamw"), device) is OptimizerName.ADAMW
    assert optimizer_for(EIGHT, device) is OptimizerName.ADAMW_8BIT
    assert eight_bits_refused(EIGHT, device) is None
    assert precision_for(OptimizerName.ADAMW) is None
    assert precision_for(OptimizerName.ADAMW_8BIT) == "bfloat16"


def test_eight_bits_are_refused_where_they_cannot_train(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--dtype float32.* Leave --dtype out"):
        optimizer_for(Flags(optimizer="adamw-8bit", dtype="float32"), "cuda")
    with pytest.raises(InputError, match=r"the device is mps.* Leave --optimizer out"):
        optimizer_for(EIGHT, "mps")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"FSDP.* Leave --optimizer out"):
        optimizer_for(EIGHT, "cuda")
    assert optimizer_for(Flags(), "cuda") is OptimizerName.ADAMW


def test_without_its_library_it_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_installed(OptimizerName.ADAMW_8BIT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_installed(OptimizerName.ADAMW)
    with pytest.raises(InputError, match=r"needs torchao.*pip install 'slimsearch\[gpu\]'"):
        check_installed(OptimizerName.ADAMW_8BIT)
