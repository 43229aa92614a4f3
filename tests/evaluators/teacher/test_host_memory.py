"""The memory of the host, as files of the system and of control groups tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.teacher import host_memory
from evaluators.teacher.host_memory import free_host_bytes, host_bytes


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 8000 kB in the control group /a/b."""
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemAvailable:  6000 kB\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "mount" / "a" / "b").mkdir(parents=True)
    (tmp_path / "mount" / "memory" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(host_memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_MOUNT", tmp_path / "mount")
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
    assert free_host_bytes() is None


def test_what_is_free_is_available_and_within_the_limit_of_the_group(system: Path) -> None:
    assert free_host_bytes() == 6000 * 1024
    group = system / "mount" / "a" / "b"
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("900\n")
    assert free_host_bytes() == 6000 * 1024
    (group / "memory.max").write_text("1000\n")
    assert free_host_bytes() == 100
    (group / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 250\nshmem 50\n")
    assert free_host_bytes() == 650, "pages of files can be taken back"
    (system / "mount" / "a" / "memory.max").write_text("500\n")
    (system / "mount" / "a" / "memory.current").write_text("800\n")
    assert free_host_bytes() == 0


def test_what_is_free_in_the_first_version_of_control_groups(system: Path) -> None:
    (system / "cgroup").write_text("5:memory:/a/b\n4:cpu:/c\n")
    group = system / "mount" / "memory" / "a" / "b"
    (group / "memory.limit_in_bytes").write_text("3000\n")
    (group / "memory.usage_in_bytes").write_text("2500\n")
    (group / "memory.stat").write_text("cache 1\ninactive_file 7\ntotal_inactive_file 600\n")
    assert free_host_bytes() == 1100
