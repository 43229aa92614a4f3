"""Energy counters of the hardware (NVML, RAPL), and the energy of a run over all of its processes.

A counter measures the whole device, whatever uses it. A counter that cannot be read is left out.

Each counter of a run has one file. Of all workers that see the device, only the one that holds the lock on
the file reads the counter. When that worker ends, another takes over and adds to the value in the file.
"""

from __future__ import annotations

import fcntl
import importlib
import platform
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import torch

_POWERCAP = Path("/sys/class/powercap")


class EnergyCounter(Protocol):
    """The energy counter of one device."""

    @property
    def key(self) -> str:
        """Unique name of the device, the same in all processes that see it."""

    @property
    def name(self) -> str:
        """Name of the device for reports."""

    def joules(self) -> float:
        """Return the energy used since the first call, which returns 0; it never decreases.

        Raises:
            OSError: the counter can no longer be read; libraries may raise errors of their own.
        """


@dataclass
class RaplPackage:
    """A processor package. Its counter wraps around, at full power every few minutes."""

    folder: Path
    range: int
    """Microjoules at which the counter wraps around."""
    total: int = 0
    last: int | None = None

    def microjoules(self) -> int:
        """Return the energy used since the first call."""
        now = int((self.folder / "energy_uj").read_text())
        if self.last is not None:
            self.total += now - self.last if now >= self.last else now - self.last + self.range
        self.last = now
        return self.total


@dataclass
class ProcessorEnergy:
    """All processor packages of this host. Has to be read more often than a counter wraps around."""

    packages: Sequence[RaplPackage]
    key: str = field(default_factory=lambda: f"processors-{platform.node()}")
    name: str = field(default_factory=lambda: f"processors of {platform.node()}")

    def joules(self) -> float:
        """See ``EnergyCounter``."""
        return sum(package.microjoules() for package in self.packages) / 1e6


@dataclass
class GpuEnergy:
    """One GPU; its counter starts when the driver is loaded."""

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
    """Return the readable counters of a device and of the host's processors; often none."""
    counters: list[EnergyCounter] = []
    if device.type == "cuda" and (gpu := _gpu(device)) is not None:
        counters.append(gpu)
    if packages := rapl_packages(_POWERCAP):
        counters.append(ProcessorEnergy(packages))
    return counters


def rapl_packages(folder: Path) -> list[RaplPackage]:
    """Return the packages in a powercap folder of the kernel, without the subzones inside a package.

    On most systems only root can read them.
    """
    packages = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            package = RaplPackage(zone, int((zone / "max_energy_range_uj").read_text()))
            package.microjoules()
        except (OSError, ValueError):
            return []  # a part of the packages must not pass for all
        packages.append(package)
    return packages


def _gpu(device: torch.device) -> GpuEnergy | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        properties = torch.cuda.get_device_properties(device)
        uuid = f"GPU-{properties.uuid}"
        gpu = GpuEnergy(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid), uuid, properties.name)
        gpu.joules()
    except Exception:  # no module, no driver, a GPU without a counter, or a MIG slice
        return None
    return gpu


#: Interval between readings, far below the minutes after which a processor's counter wraps around.
_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Energy:
    """The energy of a run, in joules."""

    joules: float
    counters: dict[str, float]
    """Joules by the name of the device."""


@contextmanager
def energy_meter(folder: Path, device: str) -> Iterator[None]:
    """Within the context, count the energy used, if the machine has readable counters.

    Args:
        folder: folder of the run's counter files; created if there is a counter.
        device: device of the run.
    """
    counters = energy_counters(torch.device(device))
    if not counters:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(counters, folder, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def energy_spent(folder: Path) -> Energy | None:
    """Return the energy of the run so far, up to the last seconds; None if nothing was counted."""
    counters: dict[str, float] = {}
    for path in sorted(folder.glob("*")):
        joules, _, name = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        if joules:
            counters[name.strip()] = counters.get(name.strip(), 0.0) + round(float(joules), 3)
    return Energy(round(sum(counters.values()), 3), counters) if counters else None


class EnergyTally:
    """One counter and its file, to which this process adds while it holds the lock.

    Args:
        counter: the counter to read.
        folder: folder of the files.
    """

    def __init__(self, counter: EnergyCounter, folder: Path) -> None:
        self.counter = counter
        self.path = folder / re.sub(r"[^A-Za-z0-9.-]", "_", counter.key)
        self._file: IO[str] | None = None
        self._before = 0.0

    def add(self) -> None:
        """Take the lock if it is free, and write the total including the energy used since then."""
        try:
            self._file = self._file or self._lock_file()
            if self._file is not None:
                total = self._before + self.counter.joules()
                self._file.seek(0)
                # Fixed width: the new text covers the old one, so no reader sees a cut number.
                self._file.write(f"{total:020.3f}\n{self.counter.name}\n")
                self._file.flush()
        except Exception:  # a lost counter or a full disk must not end a run
            return

    def close(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()

    def _lock_file(self) -> IO[str] | None:
        """Open and lock the file; energy used before now is not added, since other workers counted it."""
        self.path.touch()
        file = self.path.open("r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        self._before = float(file.readline().strip() or 0) - self.counter.joules()
        return file


def _count(counters: Sequence[EnergyCounter], folder: Path, stop: threading.Event) -> None:
    with ExitStack() as stack:
        tallies = [EnergyTally(counter, folder) for counter in counters]
        for tally in tallies:
            stack.callback(tally.close)
            tally.add()
        stopped = False
        while not stopped:
            stopped = stop.wait(_EVERY_SECONDS)
            for tally in tallies:
                tally.add()
