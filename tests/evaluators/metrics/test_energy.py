"""Counters of energy, read from a folder as the kernel makes it and a library as NVIDIA's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluators.metrics import energy
from evaluators.metrics.energy import ProcessorEnergy, energy_counters, rapl_packages


def zone(folder: Path, number: str, name: str, used: int | None, most: int = 1000) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    if used is not None:
        (path / "energy_uj").write_text(f"{used}\n")
    return path


def test_packages_are_summed_and_zones_within_them_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 100), zone(tmp_path, "1", "package-1", 500)
    inner = zone(tmp_path, "0:0", "core", 7)
    platform = zone(tmp_path, "2", "psys", 9)
    counter = ProcessorEnergy(rapl_packages(tmp_path))
    assert counter.joules() == 0
    for path, used in ((first, 350), (second, 600), (inner, 900), (platform, 900)):
        (path / "energy_uj").write_text(str(used))
    assert counter.joules() == pytest.approx(350e-6)


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    path = zone(tmp_path, "0", "package-0", 900, most=1000)
    counter = ProcessorEnergy(rapl_packages(tmp_path))
    for used, total in ((950, 50), (20, 120), (20, 120), (999, 1099), (0, 1100)):
        (path / "energy_uj").write_text(str(used))
        assert counter.joules() == pytest.approx(total * 1e-6)


def test_what_cannot_be_read_whole_is_unknown(tmp_path: Path) -> None:
    assert rapl_packages(tmp_path) == []
    zone(tmp_path, "0", "package-0", 100)
    zone(tmp_path, "1", "package-1", None)
    assert rapl_packages(tmp_path) == []


class Nvml:
    """Stands in for pynvml: millijoules since the driver was loaded."""

    def __init__(self) -> None:
        self.used = 5_000_000

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-12-34"
        return "the handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "the handle"
        return self.used


def test_a_gpu_counts_from_the_first_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml = Nvml()
    monkeypatch.setattr("importlib.import_module", lambda name: {"pynvml": nvml}[name])
    about = SimpleNamespace(uuid="12-34", name="a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    [counter] = energy_counters(torch.device("cuda"))
    assert (counter.key, counter.name) == ("GPU-12-34", "a GPU")
    nvml.used += 2500
    assert counter.joules() == 2.5
    assert energy_counters(torch.device("cpu")) == [], "it is not the CPU's"


def test_without_the_library_a_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    assert energy_counters(torch.device("cuda")) == []
