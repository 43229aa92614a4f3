"""The pages about use, done as they say: with a small teacher and text, and small numbers, as theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import Follower
from tests.small_search import SMALL, write_stories, write_teacher


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """What every page about use tells the reader to put in."""
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    return {"MODEL": "teacher", "DATA": "stories.txt", "BUDGET": "60%", "SMALL": SMALL}


def test_the_first_model(settings: dict[str, str], tmp_path: Path) -> None:
    Follower(tmp_path, settings=settings).follow("first-model.md")
    run = tmp_path / "runs" / "first"
    assert (run / "report.html").exists()
    assert [path.name for path in run.glob("models/*/README.md")] == ["README.md"]


def test_eight_gpus_as_two_workers_without_one(settings: dict[str, str], tmp_path: Path) -> None:
    Follower(tmp_path, settings=settings | {"GPUS": "0 1"}).follow("eight-gpus.md")
    assert (tmp_path / "runs" / "eight" / "summary.json").exists()


@pytest.mark.slow
def test_several_hosts_as_one_with_a_database(
    settings: dict[str, str], database: str, tmp_path: Path
) -> None:
    own = {"OUT": str(tmp_path / "shared"), "STORAGE": database}
    Follower(tmp_path, settings=settings | own).follow("several-hosts.md")
    assert (tmp_path / "shared" / "shared" / "summary.json").exists()
    assert not (tmp_path / "shared" / "shared" / "study.journal").exists()
