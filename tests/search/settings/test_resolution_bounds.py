"""Bounds and architectures by hand on the command line, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from search.planning.plan import plan
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.storage.run_directory import RunDirectory
from space.axes.architecture import Axis
from space.input_error import InputError


def resolved(model: Path, **others: Any) -> Resolved:
    return resolve(replace(Flags(budget="1M", model=(str(model),), device="cpu"), **others))


def test_bounds_cut_the_space_of_each_basis(demo_config: Path) -> None:
    free = resolved(demo_config)
    amounts = sorted(free.costs.table(free.whole.table)["memory"].tolist())
    most = amounts[len(amounts) // 2]
    found = resolved(demo_config, max=(f"memory={most}", "latency=20ms"))
    assert found.config.bounds == ("latency=20.0", f"memory={float(most)!r}")
    assert found.config.objectives == ("loss",)
    assert found.config.measures_latency
    for one, other in ((found, free), (found.turned, free.turned)):
        assert one is not None
        assert other is not None
        assert len(one.space) < len(one.whole) == len(other.space)
        assert (one.costs.table(one.space.table)["memory"] <= most).all()
    assert found.config.trials <= len(found.space)


def test_memory_is_counted_in_the_precision_of_the_weights_that_lie_there(
    demo_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((demo_config / "config.json").read_text())
    assert resolved(tmp_path).costs.value_bytes == 4
    save_file({"w": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert resolved(tmp_path).costs.value_bytes == 2


def test_what_is_to_be_tried_changes_neither_configuration_nor_space(demo_config: Path) -> None:
    free, found = resolved(demo_config), resolved(demo_config, try_=("layers=5", "hidden=96"))
    assert found.config == free.config
    assert found.space.architectures[:] == free.space.architectures[:]
    assert [(one.layers, one.hidden) for one in found.by_hand()] == [
        (5, found.axis_map.teacher.hidden),
        (found.axis_map.teacher.layers, 96),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"max": ("memory=1MB",)},
            "lie outside memory ≤ 1MB; the nearest has 4.14MB of memory. Allow --max ",
        ),
        (
            {"try_": ("layers=8,mlp=384,hidden=128",)},
            "An architecture by hand has to lie within the budget's",
        ),
        ({"try_": ("hidden=9999",)}, "--try hidden=9999 names 9999, and the teacher has 128"),
        ({"objectives": "latency"}, "Objectives have to name loss"),
    ],
)
def test_what_cannot_be_is_refused(flags: dict[str, Any], message: str, demo_config: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolved(demo_config, **flags)
    assert message in str(caught.value)


def test_the_plan_shows_bounds_what_they_leave_and_what_is_tried(demo_config: Path, tmp_path: Path) -> None:
    one = resolved(demo_config, max=("memory=4.3MB", "latency=20ms"), try_=("layers=5",), basis="coordinate")
    lines = str(plan(one, RunDirectory(tmp_path))).splitlines()
    [bounds] = [line for line in lines if line.startswith("bounds")]
    assert bounds.split(None, 1)[1] == (
        f"latency ≤ 20 ms, memory ≤ 4.3MB; {len(one.space)} of 69 architectures lie within memory; "
        "latency is measured of each candidate"
    )
    [by_hand] = [line for line in lines if line.startswith("by-hand")]
    [meant] = one.by_hand()
    assert by_hand.split(None, 1)[1] == f"{meant.label}, {one.space.parameters_of(meant):,} parameters"
    assert meant.layers == 5
    assert 0 < len(one.space) < 69
    unbounded = str(plan(resolved(demo_config), RunDirectory(tmp_path)))
    assert not any(line.startswith("bounds") for line in unbounded.splitlines())
    assert one.space.values(Axis.LAYERS)
