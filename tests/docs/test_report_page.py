"""Every figure and table of the report is explained on the page about it."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT

TEMPLATE = (ROOT / "search" / "report" / "page" / "page.html.j2").read_text(encoding="utf-8")
#: Headings of the report as a reader sees them; those that a run fills in name a model.
HEADINGS = [
    re.sub(r"<[^>]+>", "", text).strip()
    for text in re.findall(r"<h[1-4][^>]*>(.*?)</h[1-4]>", TEMPLATE, re.DOTALL)
    if "{{" not in text
]
PAGE = (DOCS / "report.md").read_text(encoding="utf-8")


def explained(heading: str) -> str | None:
    """What the page says under a heading, or after it in bold; None if it has no such."""
    name = re.escape(heading)
    found = re.search(
        rf"^#+ {name}\n+(?P<below>[^#\n][^\n]+)|\*\*{name}\*\*: (?P<beside>.+)", PAGE, re.MULTILINE
    )
    return found and (found["below"] or found["beside"])


def test_the_template_is_read() -> None:
    assert {"Pareto front", "Rank stability", "Importance", "All trials", "Versions"} <= set(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_explained(heading: str) -> None:
    assert len(explained(heading) or "") >= 20, f"docs/report.md does not explain {heading!r}"


def test_one_that_is_not_there_is_missed() -> None:
    assert explained("A figure that nobody drew") is None
