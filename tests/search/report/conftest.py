"""Pages in the browser, and the report of a real run whose teacher would like to be markup.

To draw one takes seconds: ``look`` gives one that stays open, ``visit`` and ``draw`` one of the test's own.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from search.report import write_report
from search.run import main
from search.runs.saved_run import find_run
from search.settings.teachers import EMBEDDED
from tests.search.report.browser import Visit
from tests.search.report.sample import sample_ranking, sample_summary

Open = Callable[..., Visit]
HOSTILE_MODEL = "<img src=x onerror=alert(1)>"


def _visitor(browser: Browser) -> Iterator[Open]:
    """A function that opens a file; whatever it asks of the network is refused, and noted."""
    contexts = []

    def open_page(path: Path, theme: str = "light", width: int = 1440, scripts: bool = True) -> Visit:
        context = browser.new_context(
            color_scheme=theme,  # type: ignore[arg-type]
            viewport={"width": width, "height": 900},
            offline=True,
            reduced_motion="reduce",  # a page that is still scrolling has its marks elsewhere a moment later
            java_script_enabled=scripts,
        )
        contexts.append(context)
        return Visit(context.new_page()).open(path, scripts)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """A function that opens a file in a page of the test's own."""
    yield from _visitor(browser)


@pytest.fixture(scope="session")
def _opened(browser: Browser) -> Iterator[Open]:
    for open_page in _visitor(browser):
        yield cache(open_page)


@pytest.fixture
def look(_opened: Open) -> Open:
    """A function that gives the page of a file, opened by the first test that asks, without what they did."""

    def run(path: Path, theme: str = "light", width: int = 1440) -> Visit:
        visited = _opened(path, theme, width)
        visited.rest()
        return visited

    return run


@pytest.fixture
def draw(tmp_path: Path, visit: Open) -> Open:
    """A function that writes the report of a summary and opens it."""

    def run(summary: dict[str, Any], theme: str = "light", width: int = 1440) -> Visit:
        write_report(summary, sample_ranking(), tmp_path / "report.html")
        return visit(tmp_path / "report.html", theme, width)

    return run


@pytest.fixture(scope="session")
def sample_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the sample, as it is."""
    path = tmp_path_factory.mktemp("sample-report") / "report.html"
    write_report(sample_summary(), sample_ranking(), path)
    return path


@pytest.fixture(scope="session")
def real_report(tmp_path_factory: pytest.TempPathFactory, small_run: Path, real: Path) -> Path:
    """Of a finished run, drawn again after its teacher got its name."""
    run, given = tmp_path_factory.mktemp("real-report") / "small", str(real / "stories260K")
    shutil.copytree(small_run, run)
    for name in ("summary.json", "config.toml"):
        text = (run / name).read_text()
        assert given in text
        typed = text.replace(f"--model {given}", f"--model {shlex.quote(HOSTILE_MODEL)}")
        (run / name).write_text(typed.replace(given, HOSTILE_MODEL))
    saved = find_run(run)
    write_report(saved.summary, saved.ranking_view, saved.directory.report)
    return saved.directory.report


@pytest.fixture
def hostile_report(tmp_path: Path) -> Path:
    """Of a small search in the embedded teacher, which bore its name all the time."""
    folder = tmp_path
    shutil.copytree(EMBEDDED, folder / HOSTILE_MODEL)
    command = [
        *("--budget", "1M", "--model", HOSTILE_MODEL, "--data", "stdlib", "--study-name", "hostile"),
        *("--trials", "6", "--rung-tokens", "1k", "2k", "--retrain-tokens", "2k", "--promote", "1"),
        *("--basis", "coordinate", "--repair", "none", "--depth-by", "influence"),
        *("--device", "cpu", "--dtype", "float32", "-q"),
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.chdir(folder)
        patch.setenv("SLIMSEARCH_CACHE", str(folder / "cache"))
        assert main(command) == 0
    return folder / "runs" / "hostile" / "report.html"
