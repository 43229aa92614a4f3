"""The same small search on the host and on the device: same architectures, losses within a tolerance.

Both compute in float32, so they differ by rounding alone, and by what follows from it: two units whose scores
are all but equal may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from search.frames import models, trials
from search.runs.saved_run import find_run
from space.axes.architecture import Axis
from space.cutting.ranking import Ranking
from studies.benchmarks.distil_models import device
from studies.gpu.bench import Bench
from studies.gpu.commands import Ended, run_commands
from studies.gpu.subject import Subjects

#: The most that losses may differ by, in nats per token: a small part of the steps between candidates.
TOLERANCE = 0.02


class SearchFailedError(Exception):
    """A search ended without a result; the message has its last line."""


def measure_parity(bench: Bench, _: Subjects) -> None:
    """Make the search on both, at the same time."""
    with TemporaryDirectory() as folder:
        bench.measure("the embedded teacher, host and device", lambda: _both(bench, Path(folder)))


def _both(bench: Bench, folder: Path) -> dict[str, Any]:
    places = {"host": "cpu", "device": str(device())}
    commands = {
        name: search_command(bench.work.search, place, folder, name) for name, place in places.items()
    }
    # As the last part it may take all that is left; else something is left for the search.
    ended = run_commands(commands, max(bench.left, bench.whole_left / 2), folder)
    for name, one in ended.items():
        check_ended(name, one)
    found = compared(folder / "host", folder / "device")
    return found | {f"{name}_s": ended[name].seconds for name in places}


def search_command(flags: Sequence[str], place: str, folder: Path, name: str) -> list[str]:
    """Return the arguments of Python that make a search.

    Args:
        flags: of the search.
        place: its device.
        folder: for the run.
        name: of the run.
    """
    where = ["--device", place, "--out", str(folder), "--study-name", name]
    return ["-m", "search.run", *flags, *where, "--json"]


def check_ended(name: str, ended: Ended) -> None:
    """Check that a search has a result.

    Raises:
        SearchFailedError: it has none.
    """
    if not ended.in_time:
        raise SearchFailedError(f"{name}: ended after {ended.seconds:.0f} s, for lack of time")
    if ended.status:
        raise SearchFailedError(f"{name}: exit status {ended.status}; {ended.last_line}")


def compared(host: Path, device: Path) -> dict[str, Any]:
    """Compare two finished runs of the same search.

    Args:
        host: directory of the one.
        device: directory of the other.
    """
    here, there = (_losses(run) for run in (host, device))
    common = here.index.intersection(there.index)
    difference = float((here.loc[common] - there.loc[common]).abs().max())
    same = len(common) == len(here) == len(there)
    layers, units = _orders(host, device)
    return {
        "same_architectures": same,
        "largest_difference_nats": difference,
        "tolerance_nats": TOLERANCE,
        "same_order_of_layers": layers,
        "units_at_the_same_rank": units,
        "holds": same and layers and difference <= TOLERANCE,
        "losses": len(common),
    }


def _losses(run: Path) -> pd.Series[float]:
    """Return the losses of all trials and retrained models, by rung and architecture with its layers."""
    found: dict[str, float] = {}
    for row in trials(run).to_dict("records"):
        found[f"rung {row['rung']} {row['label']} {row['kept_layers']}"] = row["loss"]
    for row in models(run).to_dict("records"):
        label = "" if row["role"] == "teacher" else row["label"]
        found[f"{row['role']} {label} {row['kept_layers']}"] = row["loss"]
    return pd.Series(found, dtype="float64")


def _orders(host: Path, device: Path) -> tuple[bool, float]:
    """Return whether layers are ranked alike, and the share of all other units that have the same rank."""
    here, there = (_ranking(run) for run in (host, device))
    layers, equal, whole = True, 0, 0
    for axis, order in here.orders.items():
        alike = order == there.orders[axis]
        if axis is Axis.LAYERS:
            layers = bool(alike.all())
        else:
            equal, whole = equal + int(alike.sum()), whole + alike.numel()
    return layers, equal / max(1, whole)


def _ranking(run: Path) -> Ranking:
    ranking = find_run(run).ranking
    assert ranking is not None, "a finished run has one"
    return ranking
