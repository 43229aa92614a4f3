"""What a reader does with the tables: sort, filter, come from a mark, go back to the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.search.report.browser import Visit
from tests.search.report.conftest import Open
from tests.search.report.sample import sample_summary

pytestmark = pytest.mark.browser

TRIALS, MODELS = "trials-table", "models-table"
LABEL, PARAMETERS, LOSS = 2, 10, 11


def heads(page: Page, table: str) -> list[str]:
    return [text.strip() for text in page.locator(f"#{table} thead th").all_text_contents()]


def sort_by(visited: Visit, table: str, column: int) -> str | None:
    head = visited.page.locator(f"#{table} thead th").nth(column)
    head.locator("button").click()
    return head.get_attribute("aria-sort")


def as_numbers(texts: list[str]) -> list[float]:
    scale = {"": 1.0, "k": 1e3, "M": 1e6}
    parts = [text.replace("\u00a0", " ").partition(" ") for text in texts]
    return [float(number) * scale[unit] for number, _, unit in parts]


def test_a_column_is_sorted_by_value_and_failures_come_last(sample_report: Path, look: Open) -> None:
    visited = look(sample_report)
    assert heads(visited.page, TRIALS)[LOSS] == "loss"
    assert sort_by(visited, TRIALS, LOSS) == "ascending"
    *rising, last = visited.column(TRIALS, LOSS)
    assert last == "failed"
    assert as_numbers(rising) == sorted(as_numbers(rising))
    assert sort_by(visited, TRIALS, LOSS) == "descending"
    *falling, last = visited.column(TRIALS, LOSS)
    assert last == "failed"
    assert falling == rising[::-1]
    assert visited.page.locator(f"#{TRIALS} [aria-sort]").count() == 1


def test_numbers_with_units_are_sorted_by_what_they_mean(draw: Open) -> None:
    summary = sample_summary()
    for trial, parameters in zip(summary["trials"], (1_020_000, 993_000, 9_000, 99_100), strict=False):
        trial["parameters"] = parameters
    visited = draw(summary)
    sort_by(visited, TRIALS, PARAMETERS)
    assert visited.column(TRIALS, PARAMETERS)[:3] == ["9.00\u00a0k", "99.1\u00a0k", "993\u00a0k"]
    sizes = as_numbers(visited.column(TRIALS, PARAMETERS))
    assert sizes == sorted(sizes)


def test_names_are_sorted_as_people_do(sample_report: Path, look: Open) -> None:
    visited = look(sample_report)
    sort_by(visited, TRIALS, LABEL)
    hidden = [int(label[1:].partition("-")[0]) for label in visited.column(TRIALS, LABEL)]
    assert hidden == sorted(hidden), "h96 stands before h112"


def test_the_keyboard_sorts_too(sample_report: Path, look: Open) -> None:
    visited = look(sample_report)
    button = visited.page.locator(f"#{MODELS} thead button").nth(3)
    button.focus()
    visited.page.keyboard.press("Enter")
    rising = visited.column(MODELS, 3)
    assert as_numbers(rising) == sorted(as_numbers(rising))
    visited.page.keyboard.press("Space")
    assert visited.column(MODELS, 3) == rising[::-1]


def test_the_filter_takes_words_a_rung_and_a_state(sample_report: Path, look: Open) -> None:
    visited, trials = look(sample_report), sample_summary()["trials"]
    page, count = visited.page, visited.page.locator(".filter output")
    assert count.inner_text() == f"{len(trials)} of {len(trials)} shown"
    page.get_by_label("Find").fill("Uniform  SHRINK")
    assert visited.column(TRIALS, 3) == ["uniform shrink"] * 2
    assert count.inner_text() == f"2 of {len(trials)} shown"
    page.locator("select[name=rung]").select_option("1")
    assert visited.column(TRIALS, 0) == ["1"]
    page.get_by_role("button", name="Show all").click()
    page.locator("select[name=state]").select_option("failed")
    [failed] = [trial for trial in trials if trial["state"] == "failed"]
    [cell] = visited.column(TRIALS, LABEL)
    assert cell == failed["label"] + failed["failure"], "with its reason"
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Find").fill("not finite")
    assert visited.column(TRIALS, LOSS) == ["failed"], "reasons are searched too"
    page.get_by_label("Find").fill("no such thing")
    assert count.inner_text() == f"0 of {len(trials)} shown"


def arrives_at(page: Page, row: str) -> None:
    """The row is on the screen, marked, and has the focus."""
    page.wait_for_function(
        """id => { const box = document.getElementById(id).getBoundingClientRect();
        return location.hash === `#${id}` && box.top > 0 && box.bottom < innerHeight; }""",
        arg=row,
    )
    assert page.evaluate("document.activeElement.id") == row
    cells = "id => getComputedStyle(document.getElementById(id).cells[1]).backgroundColor"
    assert page.evaluate(cells, row) != page.evaluate(cells, "model-teacher")


@pytest.mark.parametrize("figure", ["front", "curves", "intervals", "stability-0", "sizes"])
def test_a_click_on_a_mark_leads_to_its_row(figure: str, real_report: Path, look: Open) -> None:
    visited = look(real_report)
    mark = visited.mark(figure)
    visited.page.mouse.move(mark["x"], mark["y"])
    visited.page.wait_for_selector(f"#{figure}.leads")
    visited.page.wait_for_function(
        f"row => document.getElementById('{figure}')._hoverdata[0].customdata === row", arg=mark["row"]
    )
    visited.page.mouse.click(mark["x"], mark["y"])
    arrives_at(visited.page, mark["row"])
    assert visited.calm


def test_a_row_that_was_filtered_away_comes_back(sample_report: Path, look: Open) -> None:
    visited = look(sample_report)
    page = visited.page
    page.get_by_label("Find").fill("no such thing")
    mark = visited.mark("sizes")
    page.mouse.click(mark["x"], mark["y"])
    arrives_at(page, mark["row"])
    assert page.get_by_label("Find").input_value() == ""


def traces(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(
        "document.getElementById('front').data.map(t => ({ rows: t.customdata || [], mode: t.mode }))"
    )
    return found


def test_a_name_shows_its_way_through_the_front(sample_report: Path, look: Open) -> None:
    summary = sample_summary()
    label = summary["promoted"][1]["label"]
    visited = look(sample_report)
    page, before = visited.page, len(traces(visited.page))
    page.locator(f"#{TRIALS} a.label", has_text=label).first.click()
    page.wait_for_function(f"document.getElementById('front').data.length === {before + 1}")
    way = traces(page)[-1]
    numbers = {trial["rung"]: trial["number"] for trial in summary["trials"] if trial["label"] == label}
    assert way["rows"] == [f"trial-0-{numbers[0]}", f"trial-1-{numbers[1]}", f"model-{label}"]
    assert page.locator(".views button[aria-pressed=true]").inner_text() == "All rungs"
    page.wait_for_function("document.getElementById('pareto').getBoundingClientRect().top < 200")
    page.keyboard.press("Escape")
    page.wait_for_function(f"document.getElementById('front').data.length === {before}")
    assert visited.calm


def test_every_mark_of_every_figure_has_a_row(real_report: Path, look: Open) -> None:
    rows = look(real_report).page.evaluate(
        """[...document.querySelectorAll('.plot')].flatMap(plot => plot.data.flatMap(trace =>
        (trace.customdata || []).filter(id => typeof id === 'string')))
        .map(id => [id, Boolean(document.getElementById(id))])"""
    )
    assert len(rows) > 50
    assert [row for row, there in rows if not there] == []
