"""How moments are gathered: sizes beside what a listener holds, groups of layers, defaults, seconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from evaluators.importance.moments import MomentsListener
from search.settings.flags import Flags
from search.settings.moments_plan import MomentSums, moments_plan, moments_work
from search.settings.repairs import repairs_of
from search.settings.run_time import MomentsWork
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.moment_sizes import ReadSize
from space.verification.verification import verified_axis_map
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.search.synthetic import demo_map, run_config

#: 32 layers with 14,336 neurons and 32 heads of 128, and norms on 4,096 dimensions.
LARGE = MomentSums(
    tuple(ReadSize(layer, 1, inputs) for layer in range(32) for inputs in (14_336, 4_096)),
    hidden=4_096,
    norms=65,
    chosen=1,
    calibration=1024 * 4096,
)


@cache
def turnable() -> AxisMap:
    return verified_axis_map(tiny_model("llama").config, BasisName.WEIGHTED)


@pytest.mark.parametrize("tokens", [60, 10_000])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt2"])
def test_sizes_are_those_of_the_sums(model_type: str, tokens: int) -> None:
    """With the halves that are kept where tokens are few."""
    model = tiny_model(model_type)
    axis_map = turnable() if model_type == "llama" else map_of(model.config)
    listener = MomentsListener(model, axis_map, tokens=tokens)
    with listener.on(), torch.no_grad():
        model(input_ids=random_tokens(40, 10).long(), use_cache=False)
    sums = [one for found in listener.seconds.values() for one in found.values()]
    held = [values for one in (*sums, *listener.stream.values()) for values in (one.total, one.half)]
    wanted = sum(values.nbytes for values in held if values is not None)
    assert MomentSums.of(axis_map, len(listener.stream), tokens).of_layers(None) == wanted


def test_large_ones_are_gathered_in_groups() -> None:
    layer, norm = 8 * (14_336**2 + 4_096**2), 8 * 4_096**2
    assert LARGE.of_layers(None) == 32 * layer + 65 * norm
    assert LARGE.of_layers(10) == 10 * layer + 21 * norm
    assert LARGE.file == LARGE.of_layers(None) / 2
    assert (LARGE.wanted, LARGE.every) == (128 * 14_336, 2)
    scarce = replace(LARGE, calibration=256)
    assert (scarce.every, scarce.file) == (1, 2 * LARGE.file), "halves are kept"


@pytest.mark.parametrize(
    ("told", "layers", "passes"), [(None, None, 0.0), (20_000_000, 3, (3 + 6 + 8) / 8), (1, 1, 36 / 8)]
)
def test_the_sums_take_a_share_of_the_device(told: int | None, layers: int | None, passes: float) -> None:
    config = run_config(repair=("least-squares",), block=128, calibration_blocks=256, device="cpu")
    plan = moments_plan(config, demo_map(), told)
    assert plan.layers == layers
    assert plan.passes == pytest.approx(passes)
    assert plan.beside == (layers is None)
    if layers is not None:
        assert f"gathered in {len(plan.groups)} passes of {layers} layers" in plan.words(by_layers=False)
    assert plan.words(by_layers=True).endswith("gathered as the teacher is ranked")
    work = moments_work(plan, replace(config, dtype="float32"), by_layers=False)
    assert work.passes > passes
    assert moments_work(plan, config, by_layers=True).passes < 1


def test_few_tokens_are_told() -> None:
    config = run_config(repair=("least-squares",), block=10, calibration_blocks=10, device="cpu")
    words = moments_plan(config, demo_map()).words(by_layers=False)
    assert words.startswith("moments of 100 tokens, fewer than the 384 inputs of the largest system")


def test_time_grows_with_the_tokens_that_are_heard() -> None:
    work = MomentsWork(tokens=1000, passes=2.0)
    assert work.read(run_config(block=10, calibration_blocks=50)) == 2 * 500
    assert work.read(run_config(block=10, calibration_blocks=350)) == pytest.approx(2 * 3500 / 3)


def test_the_disk_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = MomentSums.of(demo_map(), 17, 32_768).file
    for free, wanted in ((4 * needed, ("least-squares",)), (4 * needed - 4, ())):
        monkeypatch.setattr("search.settings.repairs.free_bytes", lambda _, free=free: free)
        assert repairs_of(Flags(budget="1M"), demo_map(), 32_768, tmp_path) == wanted
    chosen = Flags(budget="1M", repair=("norm-scale",))
    assert repairs_of(chosen, demo_map(), 32_768, tmp_path) == ("norm-scale",)
    assert repairs_of(Flags(budget="1M", repair=("none",)), demo_map(), 32_768, tmp_path) == ()


def test_a_run_that_goes_on_keeps_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own targets may have filled the disk in the meantime."""
    monkeypatch.setattr("search.settings.repairs.free_bytes", lambda _: 0)
    (tmp_path / "config.toml").write_text(run_config(repair=("least-squares",)).to_toml())
    assert repairs_of(Flags(budget="1M"), demo_map(), 32_768, tmp_path) == ("least-squares",)
