"""The memory that there is, as the system's files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluators.metrics import capacity
from evaluators.metrics.capacity import Capacity, capacity_of, host_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 8000 kB in the control group /a/b."""
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree:  1 kB\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "mount" / "a" / "b").mkdir(parents=True)
    (tmp_path / "mount" / "memory" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(capacity, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(capacity, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(capacity, "_MOUNT", tmp_path / "mount")
    return tmp_path


def test_the_host_has_its_memory_or_the_limit_of_its_group(system: Path) -> None:
    assert host_bytes() == 8000 * 1024
    (system / "mount" / "a" / "b" / "memory.max").write_text("max\n")
    assert host_bytes() == 8000 * 1024
    (system / "mount" / "a" / "memory.max").write_text("5000\n")
    assert host_bytes() == 5000, "a group around this one limits it too"
    (system / "mount" / "a" / "b" / "memory.max").write_text("4000\n")
    assert host_bytes() == 4000


def test_the_first_version_of_control_groups(system: Path) -> None:
    (system / "cgroup").write_text("5:memory:/a/b\n4:cpu:/c\n")
    limit = system / "mount" / "memory" / "a" / "b" / "memory.limit_in_bytes"
    limit.write_text("9223372036854771712\n")
    assert host_bytes() == 8000 * 1024
    limit.write_text("3000\n")
    assert host_bytes() == 3000


def test_a_host_that_tells_nothing(system: Path) -> None:
    (system / "meminfo").unlink()
    assert host_bytes() is None


def test_the_device(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = 8000 * 1024
    assert capacity_of(CPU) == Capacity(None, host, shared=True)
    assert capacity_of(CPU, 5) == Capacity(None, 5, shared=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert capacity_of(CUDA, 80) == Capacity(80, None, shared=False, told=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1, 100))
    assert capacity_of(CUDA) == Capacity(100, host, shared=False)
    assert capacity_of(CUDA, 80) == Capacity(80, host, shared=False, told=True)
