"""A search as anyone makes it, of a teacher and a text at hand, within the time that is left."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from search.frames import trials
from studies.benchmarks.distil_models import device
from studies.gpu.bench import Bench
from studies.gpu.commands import run_commands
from studies.gpu.parity import check_ended, search_command

#: Share of the time that is left which the search is given. Its hours are what it foretells, not a limit.
_SHARE = 0.85


def measure_search(bench: Bench, teacher: Path, data: Path) -> None:
    """Search for 60% of a teacher.

    Args:
        bench: has the time that is left.
        teacher: directory of the teacher.
        data: file of the text.
    """
    with TemporaryDirectory() as folder:
        bench.measure(f"60% of {teacher.name}", lambda: _searched(bench, teacher, data, Path(folder)))


def _searched(bench: Bench, teacher: Path, data: Path, folder: Path) -> dict[str, Any]:
    seconds = _SHARE * bench.whole_left
    hours = f"{seconds / 3600:.4f}"
    flags = ("--budget", "60%", "--model", str(teacher), "--data", str(data), "--hours", hours)
    command = search_command(flags, str(device()), folder, "search")
    ended = run_commands({"search": command}, bench.whole_left, folder)["search"]
    check_ended("search", ended)
    result = json.loads(ended.output)
    tried = trials(folder / "search")
    chosen = result["chosen"] or {}
    return {
        "asked_s": seconds,
        "seconds": ended.seconds,
        "ratio": ended.seconds / seconds,
        "candidates_scored": int((tried["rung"] == 0).sum()),
        "candidates_distilled": tried.loc[tried["rung"] > 0, "label"].nunique(),
        "candidates_failed": int((tried["state"] == "failed").sum()),
        "models_retrained": len(result["promoted"]),
        "teacher_loss": result["teacher"]["loss"],
        "chosen": chosen.get("label"),
        "chosen_loss": chosen.get("loss"),
    }
