"""The figures of an acceptance, in a JSON file that is whole at every moment."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from search.storage.run_directory import atomic_write

Figures = Mapping[str, Any]
"""What a measurement found: figures by name, with the unit in the name."""

#: What the figures depend on.
_PACKAGES = ("torch", "transformers", "torchao", "liger-kernel", "triton", "accelerate")
#: Figures of a measurement that the table shows; the file has all.
_SHOWN = 6


class Findings:
    """The parts of an acceptance with their figures; each change is written at once.

    Args:
        path: of the file; its folder exists.
        about: what the figures were measured on and with.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Any]] = {}
        self._about = about
        self._write()

    def begin(self, part: str) -> None:
        """Begin a part."""
        self.parts[part] = {"state": "running", "figures": []}
        self._write()

    def add(self, part: str, what: str, figures: Figures) -> None:
        """Add what a measurement of a part found."""
        self.parts[part]["figures"].append({"what": what, **_for_json(figures)})
        self._write()

    def end(self, part: str, seconds: float, failure: str = "") -> None:
        """End a part, with the message if an exception ended it."""
        self.parts[part] |= {"state": "failed" if failure else "done", "seconds": round(seconds, 1)}
        if failure:
            self.parts[part]["failed"] = failure
        self._write()

    @property
    def whole(self) -> bool:
        """Whether nothing failed; what is skipped, refused or out of memory is a result."""
        rows = [row for part in self.parts.values() for row in (part, *part["figures"])]
        return not any("failed" in row for row in rows)

    def table(self) -> str:
        """For people: a line for each measurement."""
        rows = [(f"{part}: {row['what']}", row) for part, found in self.parts.items() for row in _rows(found)]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name.ljust(width)}  {_in_words(row)}" for name, row in rows)

    def _write(self) -> None:
        text = json.dumps({**self._about, "parts": self.parts}, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(self.path, text + "\n")


def about() -> dict[str, Any]:
    """Return device, its memory, versions and date."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "device_bytes": torch.cuda.mem_get_info()[1] if cuda else None,
        **{name: _version(name) for name in _PACKAGES},
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, if its tool is there to tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] if told else None


def _for_json(value: Any) -> Any:
    """Return a value that JSON can hold; a number that is not finite becomes its name."""
    if isinstance(value, Mapping):
        return {str(name): _for_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    failure = [{"what": "the part", "failed": part["failed"]}] if "failed" in part else []
    return [*part["figures"], *failure]


def _in_words(row: Mapping[str, Any]) -> str:
    """Return the first figures of a row, which tell the most."""
    shown = list(row.items())[1 : 1 + _SHOWN]
    return ", ".join(f"{name} {_short(value)}" for name, value in shown)


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
