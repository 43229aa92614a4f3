"""The energy of a run: each device counted once, whoever of its workers reads it, and over all processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from evaluators.metrics import energy
from evaluators.metrics.energy import Energy, EnergyTally, energy_meter, energy_spent


@dataclass
class Counter:
    """Says what it is told to, from the first call on as real ones do."""

    used: float = 0.0
    key: str = "GPU-12/34"
    name: str = "a GPU"

    def joules(self) -> float:
        return self.used


def test_two_workers_that_see_one_device_count_it_once(tmp_path: Path) -> None:
    one, other = Counter(), Counter()
    first, second = EnergyTally(one, tmp_path), EnergyTally(other, tmp_path)
    first.add()
    second.add()
    one.used = other.used = 40.0
    first.add()
    second.add()
    assert energy_spent(tmp_path) == Energy(40.0, {"a GPU": 40.0})
    first.close()
    second.add()  # takes over; what the first counted is not counted again
    other.used = 45.5
    second.add()
    second.close()
    assert energy_spent(tmp_path) == Energy(45.5, {"a GPU": 45.5})


def test_a_run_that_goes_on_adds_to_what_it_used(tmp_path: Path) -> None:
    for used in (10.0, 2.25):
        counter = Counter()
        tally = EnergyTally(counter, tmp_path)
        tally.add()
        counter.used = used
        tally.add()
        tally.close()
    assert energy_spent(tmp_path) == Energy(12.25, {"a GPU": 12.25})


def test_devices_are_added_and_those_of_one_name_stand_together(tmp_path: Path) -> None:
    counters = [Counter(key="a"), Counter(key="b"), Counter(key="c", name="processors of host")]
    for counter, used in zip(counters, (1.0, 2.0, 4.0), strict=True):
        tally = EnergyTally(counter, tmp_path)
        tally.add()
        counter.used = used
        tally.add()
        tally.close()
    assert energy_spent(tmp_path) == Energy(7.0, {"a GPU": 3.0, "processors of host": 4.0})


def test_a_counter_that_goes_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    tally = EnergyTally(counter, tmp_path)
    tally.add()
    counter.used = 3.0
    tally.add()

    def gone() -> float:
        raise OSError("no such device")

    monkeypatch.setattr(counter, "joules", gone)
    tally.add()
    tally.close()
    assert energy_spent(tmp_path) == Energy(3.0, {"a GPU": 3.0})


def test_what_is_used_within_the_context_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(used=100.0)
    monkeypatch.setattr(energy, "energy_counters", lambda device: [counter])
    monkeypatch.setattr(energy, "_EVERY_SECONDS", 0.001)
    with energy_meter(tmp_path / "energy", "cuda"):
        while not (found := energy_spent(tmp_path / "energy")):
            pass
        assert found == Energy(0.0, {"a GPU": 0.0}), "what was used before is not the run's"
        counter.used = 130.0
    assert energy_spent(tmp_path / "energy") == Energy(30.0, {"a GPU": 30.0})


def test_where_no_machine_tells_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "energy_counters", lambda device: [])
    with energy_meter(tmp_path / "energy", "cpu"):
        pass
    assert not (tmp_path / "energy").exists()
    assert energy_spent(tmp_path / "energy") is None
