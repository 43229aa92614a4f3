"""The pages about what can be added, done as they say on a copy of the packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Follower

PAGES = ("new-family.md", "new-loss.md", "new-objective.md", "new-sampler.md")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "*.jsonl", "*.png", "*.safetensors")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and tests, to be changed."""
    for name in ("space", "evaluators", "search", "studies", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=_LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_page_about_something_new_is_tried() -> None:
    assert {path.name for path in DOCS.glob("new-*.md")} == set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_it_says_can_be_added(page: str, copy: Path) -> None:
    Follower(copy, code=copy).follow(page)
