"""The report as a browser draws it: every figure, in both themes, without an error or a request."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.report import write_report
from tests.search.report.sample import sample_ranking, sample_summary
from tests.search.report.test_report import HOSTILE, Page, hostile_summary
from tests.search.report.variants import VARIANTS

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ACCENT = {"light": "rgb(36, 88, 211)", "dark": "rgb(134, 173, 255)"}


@dataclass(frozen=True)
class Drawn:
    """What came out: the document after its scripts ran, what the console said, who made requests."""

    html: str
    console: list[str]
    requests: list[str]

    @property
    def plots(self) -> list[dict[str, str | None]]:
        """The attributes of the elements that hold a figure."""
        elements = Page(self.html).elements
        return [attributes for _, attributes in elements if "plot" in (attributes.get("class") or "").split()]


Draw = Callable[..., Drawn]


@pytest.fixture
def visit(tmp_path: Path) -> Draw:
    """A function that opens a file in headless Chromium, which can reach nothing."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) to see the report drawn")
    program, log = CHROMIUM, tmp_path / "net.json"

    def run(page: Path, theme: str = "light", width: int = 1440) -> Drawn:
        options = {
            "headless": "new",
            "host-resolver-rules": "MAP * ~NOTFOUND",
            "enable-logging": "stderr",
            "user-data-dir": tmp_path / "profile",
            "log-net-log": log,
            "blink-settings": f"preferredColorScheme={int(theme == 'light')}",
            "window-size": f"{width},1000",
            "virtual-time-budget": 20000,
        }
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
        command = [program, *(f"--{name}={value}" for name, value in options.items()), *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        # What the browser asks for on its own account has the initiator "not an origin".
        initiators = re.findall(r'"initiator":"([^"]*)"', log.read_text(encoding="utf-8"))
        return Drawn(done.stdout, console, [one for one in initiators if one != "not an origin"])

    return run


@pytest.fixture
def draw(tmp_path: Path, visit: Draw) -> Draw:
    """A function that writes the report of a summary and opens it."""

    def run(summary: dict[str, Any], theme: str = "light", width: int = 1440) -> Drawn:
        write_report(summary, sample_ranking(), tmp_path / "report.html")
        return visit(tmp_path / "report.html", theme, width)

    return run


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 420)])
def test_every_figure_is_drawn_in_the_colours_of_the_theme(theme: str, width: int, draw: Draw) -> None:
    drawn = draw(sample_summary(), theme, width)
    assert drawn.console == []
    assert drawn.requests == []
    assert len(drawn.plots) == 13
    assert all(plot.get("data-drawn") == "true" for plot in drawn.plots)
    assert drawn.html.count('class="main-svg"') >= 13
    assert ACCENT[theme] in drawn.html
    other = ACCENT["dark" if theme == "light" else "light"]
    assert other not in drawn.html


def test_direct_labels_are_there(draw: Draw) -> None:
    summary = sample_summary()
    drawn = draw(summary)
    texts = re.findall(r'class="annotation-text"[^>]*>(.*?)</text>', drawn.html)
    for text in ("uniform shrink", "MLP and heads only", "depth only"):
        assert texts.count(text) == 2, "a baseline is named in the front and beside the curves"
    assert sum(f"chosen: {summary['chosen']['label']}" in text for text in texts) == 2


def test_text_that_would_be_markup_stays_text(draw: Draw) -> None:
    drawn = draw(hostile_summary(HOSTILE))
    page = Page(drawn.html)
    assert drawn.console == []
    assert drawn.requests == []
    assert "img" not in [tag for tag, _ in page.elements]
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2 + len(drawn.plots)
    assert all(plot.get("data-drawn") == "true" for plot in drawn.plots)
    assert HOSTILE in page.text


@pytest.mark.parametrize("name", ["one_trial", "nothing_evaluated", "losses_missing", "large_numbers"])
def test_summaries_at_the_edge_are_drawn_without_an_error(name: str, draw: Draw) -> None:
    drawn = draw(VARIANTS[name]())
    assert drawn.console == []
    assert all(plot.get("data-drawn") == "true" for plot in drawn.plots)


def test_the_check_of_requests_can_fail(visit: Draw, tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text('<img src="http://example.com/x.png">')
    assert len(visit(page).requests) == 1


def test_the_check_of_the_console_can_fail(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"traces": [{"type": "scatter", "x": 1, "y": 2}], "layout": None, "labels": [], "views": []}
    monkeypatch.setattr("search.report.figures.figure.Figure.data", lambda _: broken)
    drawn = draw(sample_summary())
    assert json.dumps(drawn.console).count("TypeError") > 0
    assert not any(plot.get("data-drawn") for plot in drawn.plots)
