"""Figures that are kept, with what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from studies.benchmarks.figure import Figure

#: What the figures depend on.
_PACKAGES = ("torch", "transformers", "accelerate", "trl", "nvidia-modelopt", "liger-kernel")


def keep(folder: Path, suite: str, figures: Sequence[Figure]) -> Path:
    """Write figures to a file that is named by suite, device and time; those of other runs stay.

    Raises:
        OSError: the folder cannot be written.
    """
    about = surroundings()
    device = re.sub("[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    moment = about["date"].replace(":", "").removesuffix("+0000")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite}_{device}_{moment}.json"
    path.write_text(json.dumps({**about, "figures": [figure.row() for figure in figures]}, indent=1) + "\n")
    return path


def surroundings() -> dict[str, Any]:
    """Device, its load, versions and date."""
    load = f"{os.getloadavg()[0]:.1f} processes ready to run on {os.cpu_count()} processors"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "load": load,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    """The model's name on Linux."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
