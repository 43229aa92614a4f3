"""The browser, and the report of a real run whose teacher has a name that would like to be markup."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from search.report import write_report
from search.run import main
from search.settings.teachers import EMBEDDED
from tests.search.report.browser import Visit
from tests.search.report.sample import sample_ranking

Open = Callable[..., Visit]
HOSTILE_MODEL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """A function that opens a file; whatever it asks of the network is refused, and noted."""
    contexts = []

    def open_page(path: Path, theme: str = "light", width: int = 1440, scripts: bool = True) -> Visit:
        context = browser.new_context(
            color_scheme=theme,  # type: ignore[arg-type]
            viewport={"width": width, "height": 900},
            offline=True,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        return Visit(context.new_page()).open(path, scripts)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def draw(tmp_path: Path, visit: Open) -> Open:
    """A function that writes the report of a summary and opens it."""

    def run(summary: dict[str, Any], theme: str = "light", width: int = 1440) -> Visit:
        write_report(summary, sample_ranking(), tmp_path / "report.html")
        return visit(tmp_path / "report.html", theme, width)

    return run


@pytest.fixture(scope="session")
def real_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small search in the embedded teacher."""
    folder = tmp_path_factory.mktemp("real-report")
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
