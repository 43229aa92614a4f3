"""Counters of energy that a machine keeps: NVML's of a GPU, RAPL's of the processor packages under Linux.

Each counts for the whole device, whoever uses it. A counter that cannot be read is none.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

_POWERCAP = Path("/sys/class/powercap")


class EnergyCounter(Protocol):
    """One device that tells what it has used."""

    @property
    def key(self) -> str:
        """The same for all processes that see the device, and for no other device."""

    @property
    def name(self) -> str:
        """For people."""

    def joules(self) -> float:
        """Used since the first call, which is 0; never less than before.

        Raises:
            OSError: it cannot be read any more; other libraries raise errors of their own.
        """


@dataclass
class Package:
    """A processor package. Its counter begins anew at a limit, some minutes of full power apart."""

    folder: Path
    range: int
    """Microjoules, at which it begins anew."""
    total: int = 0
    last: int | None = None

    def microjoules(self) -> int:
        """Used since the first call."""
        now = int((self.folder / "energy_uj").read_text())
        if self.last is not None:
            self.total += now - self.last if now >= self.last else now - self.last + self.range
        self.last = now
        return self.total


@dataclass
class Processors:
    """All packages of this host. Has to be read more often than a package's counter begins anew."""

    packages: Sequence[Package]
    key: str = field(default_factory=lambda: f"processors-{platform.node()}")
    name: str = field(default_factory=lambda: f"processors of {platform.node()}")

    def joules(self) -> float:
        """See ``EnergyCounter``."""
        return sum(package.microjoules() for package in self.packages) / 1e6


@dataclass
class Gpu:
    """One GPU; it counts from when its driver was loaded."""

    nvml: Any
    handle: Any
    key: str
    name: str
    first: int | None = None

    def joules(self) -> float:
        """See ``EnergyCounter``."""
        now = int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        self.first = now if self.first is None else self.first
        return (now - self.first) / 1e3


def energy_counters(device: torch.device) -> list[EnergyCounter]:
    """Those that can be read of a device and of the processors beside it; often none."""
    found: list[EnergyCounter] = []
    if device.type == "cuda" and (gpu := _gpu(device)) is not None:
        found.append(gpu)
    if packages := rapl_packages(_POWERCAP):
        found.append(Processors(packages))
    return found


def rapl_packages(folder: Path) -> list[Package]:
    """The packages below a folder of the kernel's power caps; a zone within a package is no package.

    Most systems let only the administrator read them.
    """
    packages = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            package = Package(zone, int((zone / "max_energy_range_uj").read_text()))
            package.microjoules()
        except (OSError, ValueError):
            return []  # part of the processors would pass for all
        packages.append(package)
    return packages


def _gpu(device: torch.device) -> Gpu | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        about = torch.cuda.get_device_properties(device)
        uuid = f"GPU-{about.uuid}"
        gpu = Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid), uuid, about.name)
        gpu.joules()
    except Exception:  # no module, no driver, a GPU that does not count, or a slice of one
        return None
    return gpu
