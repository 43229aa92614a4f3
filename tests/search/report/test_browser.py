"""The report as a browser draws it: every figure, in both themes, without an error or a request."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.search.report.browser import ACCENT, Visit
from tests.search.report.conftest import HOSTILE_MODEL, Open
from tests.search.report.sample import sample_summary
from tests.search.report.test_report import HOSTILE, hostile_summary
from tests.search.report.variants import VARIANTS

pytestmark = pytest.mark.browser

_LOOKS = [
    ("light", 1440),
    *(
        pytest.param(theme, width, marks=pytest.mark.slow)
        for theme, width in (("dark", 420), ("light", 420), ("dark", 1440))
    ),
]
#: Every variant is drawn by Plotly's own validators in test_report.py; these in a browser too.
_EDGES = ["nothing_evaluated", "large_numbers", "one_trial", "losses_missing"]


@pytest.mark.parametrize(("theme", "width"), _LOOKS)
def test_a_real_run_is_drawn_whole(theme: str, width: int, real_report: Path, look: Open) -> None:
    visited = look(real_report, theme, width)
    assert visited.calm
    assert len(visited.drawn) >= 10
    assert all(visited.drawn)
    html = visited.page.content()
    assert ACCENT[theme] in html
    assert ACCENT["dark" if theme == "light" else "light"] not in html
    assert visited.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"


def shows_the_model_id_as_text(visited: Visit) -> None:
    assert visited.page.locator("img").count() == 0
    assert visited.dialogs == []
    texts = visited.page.locator("body").inner_text()
    assert f"teacher {HOSTILE_MODEL}" in texts, "in the header"
    assert f"--model '{HOSTILE_MODEL}'" in texts, "in the command"


def test_a_model_id_that_would_be_markup_stays_text(real_report: Path, look: Open) -> None:
    shows_the_model_id_as_text(look(real_report))


@pytest.mark.slow
def test_a_run_in_a_model_whose_id_would_be_markup_is_drawn(hostile_report: Path, visit: Open) -> None:
    visited = visit(hostile_report)
    assert visited.calm
    assert all(visited.drawn)
    shows_the_model_id_as_text(visited)


def test_every_model_of_a_real_run_writes_and_is_taken_apart(real_report: Path, look: Open) -> None:
    page = look(real_report).page
    summary = json.loads((real_report.parent / "summary.json").read_text())
    kept = {entry["path"] for entry in (*summary["promoted"], *summary["baselines"]) if entry["path"]}
    assert page.locator("article.prompt").count() == len(summary["prompts"]) == 4
    assert page.locator(".answers figure").count() == 4 * (1 + len(kept))
    assert page.locator(".answers figcaption").first.inner_text() == "teacher"
    given = page.locator("pre.given bdi").all_text_contents()
    assert given == summary["prompts"], "white space and all"
    assert page.locator(".stack .bar-row").count() == 6
    filled = page.eval_on_selector_all(
        ".pieces",
        """bars => bars.map(bar =>
        [...bar.children].reduce((sum, piece) => sum + piece.offsetWidth, 0) / bar.offsetWidth)""",
    )
    for teacher, chosen in zip(filled[::2], filled[1::2], strict=True):
        assert max(teacher, chosen) == pytest.approx(1, abs=0.02), "the longer bar fills its place"


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 420)])
def test_every_figure_is_drawn_in_the_colours_of_the_theme(
    theme: str, width: int, sample_report: Path, look: Open
) -> None:
    visited = look(sample_report, theme, width)
    assert visited.calm
    assert visited.drawn == [True] * 14
    assert ACCENT[theme] in visited.page.content()


@pytest.mark.slow
def test_direct_labels_are_there(sample_report: Path, look: Open) -> None:
    summary = sample_summary()
    html = look(sample_report).page.content()
    texts = re.findall(r'class="annotation-text"[^>]*>(.*?)</text>', html)
    for text in ("uniform shrink", "MLP and heads only", "depth only"):
        assert texts.count(text) == 2, "a baseline is named in the front and beside the curves"
    assert sum(f"chosen: {summary['chosen']['label']}" in text for text in texts) == 2


def test_text_that_would_be_markup_stays_text(draw: Open) -> None:
    visited = draw(hostile_summary(HOSTILE))
    assert visited.calm
    assert all(visited.drawn)
    assert visited.page.locator("img").count() == 0
    assert visited.page.locator("script").count() == 3 + len(visited.drawn), "Plotly's twice, packed and not"
    assert HOSTILE in visited.page.locator("body").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", _EDGES)
def test_summaries_at_the_edge_are_drawn_without_an_error(name: str, draw: Open) -> None:
    visited = draw(VARIANTS[name]())
    assert visited.calm
    assert all(visited.drawn)


def test_without_scripts_the_tables_are_whole(real_report: Path, visit: Open) -> None:
    summary = json.loads((real_report.parent / "summary.json").read_text())
    page = visit(real_report, scripts=False).page
    assert page.locator("#trials-table tbody tr:visible").count() == len(summary["trials"])
    assert page.locator(".filter:visible").count() == 0
    assert page.locator("#trials-table thead button").count() == 0


@pytest.mark.slow
def test_on_paper_it_is_light_and_fits(real_report: Path, visit: Open) -> None:
    visited = visit(real_report, "dark")
    page = visited.page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('#front .main-svg').getAttribute('width') === '680'")
    assert page.locator("nav:visible, .filter:visible, .views:visible, .screen:visible").count() == 0
    style = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(style) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    assert page.evaluate(style) != "rgb(255, 255, 255)", "the dark theme comes back"
    assert page.pdf(format="A4").startswith(b"%PDF-")
    assert visited.calm


def test_the_check_of_requests_can_fail(visit: Open, tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text('<img src="http://example.com/x.png">')
    assert visit(page).requests == ["http://example.com/x.png"]


def test_the_check_of_dialogs_can_fail(visit: Open, tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text(f"{HOSTILE_MODEL}<script>alert(2)</script>")
    assert "2" in visit(page).dialogs


def test_the_check_of_the_console_can_fail(draw: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"traces": [{"type": "scatter", "x": 1, "y": 2}], "layout": None, "labels": [], "views": []}
    broken["alternatives"] = []
    monkeypatch.setattr("search.report.figures.figure.Figure.data", lambda _: broken)
    visited = draw(sample_summary())
    assert len(visited.console) == len(visited.drawn)
    assert all("of null" in text for text in visited.console)
    assert not any(visited.drawn)


def test_the_menu_of_objectives_draws_their_front(draw: Open) -> None:
    summary = sample_summary()
    summary["objectives"].append({"name": "<b>quiz", "unit": "nats"})
    for place, entry in enumerate((*summary["trials"], *summary["promoted"], *summary["baselines"])):
        if entry["loss"] is not None:
            entry["objectives"]["<b>quiz"] = entry["loss"] - 9 + (place % 3) / 4
    visited = draw(summary)
    menu = visited.page.locator("select.alternatives")
    assert menu.locator("option").all_text_contents() == [
        "loss and latency",
        "loss and <b>quiz",
        "<b>quiz and latency",
    ]
    title = "#front .ytitle"
    assert (visited.page.locator(title).text_content() or "").startswith("loss")
    menu.select_option(index=2)
    visited.page.wait_for_function(f"document.querySelector('{title}').textContent.includes('quiz')")
    assert (visited.page.locator("#front .xtitle").text_content() or "").startswith("latency")
    menu.select_option(index=0)
    visited.page.wait_for_function(f"document.querySelector('{title}').textContent.startsWith('loss')")
    assert visited.page.locator("#pareto .views").count() == 1
    assert visited.calm
