"""Counters of energy that a machine keeps (NVML, RAPL), and what a run took over all of its processes.

Each counts for the whole device, whoever uses it. A counter that cannot be read is none.

A device counts for whoever uses it, so that of all workers that see it one at a time reads it: the one
that holds the lock on its file. When that worker ends another takes over, and the file goes on from where
it was.
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
class RaplPackage:
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
class ProcessorEnergy:
    """All packages of this host. Has to be read more often than a package's counter begins anew."""

    packages: Sequence[RaplPackage]
    key: str = field(default_factory=lambda: f"processors-{platform.node()}")
    name: str = field(default_factory=lambda: f"processors of {platform.node()}")

    def joules(self) -> float:
        """See ``EnergyCounter``."""
        return sum(package.microjoules() for package in self.packages) / 1e6


@dataclass
class GpuEnergy:
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
        found.append(ProcessorEnergy(packages))
    return found


def rapl_packages(folder: Path) -> list[RaplPackage]:
    """The packages below a folder of the kernel's power caps; a zone within a package is no package.

    Most systems let only the administrator read them.
    """
    packages = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            package = RaplPackage(zone, int((zone / "max_energy_range_uj").read_text()))
            package.microjoules()
        except (OSError, ValueError):
            return []  # part of the processors would pass for all
        packages.append(package)
    return packages


def _gpu(device: torch.device) -> GpuEnergy | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        about = torch.cuda.get_device_properties(device)
        uuid = f"GPU-{about.uuid}"
        gpu = GpuEnergy(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid), uuid, about.name)
        gpu.joules()
    except Exception:  # no module, no driver, a GPU that does not count, or a slice of one
        return None
    return gpu


#: Far below the minutes after which a processor's counter begins anew.
_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Energy:
    """What the counters of a run came to, in joules."""

    joules: float
    counters: dict[str, float]
    """By the name of the device."""


@contextmanager
def energy_meter(folder: Path, device: str) -> Iterator[None]:
    """Count what is used within the context, if the machine tells.

    Args:
        folder: where the run keeps what it used; made if there is something to keep.
        device: that the run works on.
    """
    counters = energy_counters(torch.device(device))
    if not counters:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    gone = threading.Event()
    thread = threading.Thread(target=_count, args=(counters, folder, gone), daemon=True)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


def energy_spent(folder: Path) -> Energy | None:
    """What the run has used so far, up to the last seconds; None if nothing was counted."""
    counters: dict[str, float] = {}
    for path in sorted(folder.glob("*")):
        joules, _, name = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        if joules:
            counters[name.strip()] = counters.get(name.strip(), 0.0) + round(float(joules), 3)
    return Energy(round(sum(counters.values()), 3), counters) if counters else None


class EnergyTally:
    """One counter and its file, which this process adds to while it has the lock.

    Args:
        counter: to read.
        folder: of the files.
    """

    def __init__(self, counter: EnergyCounter, folder: Path) -> None:
        self.counter = counter
        self.path = folder / re.sub(r"[^A-Za-z0-9.-]", "_", counter.key)
        self._file: IO[str] | None = None
        self._before = 0.0

    def add(self) -> None:
        """Take the lock if it is free, and write down what was used since it was taken."""
        try:
            self._file = self._file or self._taken()
            if self._file is not None:
                total = self._before + self.counter.joules()
                self._file.seek(0)
                # As long as what stood there before, so that it is never cut off.
                self._file.write(f"{total:020.3f}\n{self.counter.name}\n")
                self._file.flush()
        except Exception:  # a counter that went away, or a full disk, is no reason to end a run
            return

    def close(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()

    def _taken(self) -> IO[str] | None:
        """The file, locked; what was used until now has been counted by others, or by nobody."""
        self.path.touch()
        file = self.path.open("r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        self._before = float(file.readline().strip() or 0) - self.counter.joules()
        return file


def _count(counters: Sequence[EnergyCounter], folder: Path, gone: threading.Event) -> None:
    with ExitStack() as stack:
        tallies = [EnergyTally(counter, folder) for counter in counters]
        for tally in tallies:
            stack.callback(tally.close)
            tally.add()
        ending = False
        while not ending:
            ending = gone.wait(_EVERY_SECONDS)
            for tally in tallies:
                tally.add()
