"""README and docs keep their word: links lead somewhere, commands are ones, and each "yes" has its test."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from search.settings.command_line import read_flags

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
COMPARISON = ROOT / "docs" / "comparison.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in COMPARISON.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]


def commands(page: Path) -> list[str]:
    """What a page runs of ``search.run``, on one line each."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"python -m search\.run +([^\n`]*)", text) + re.findall(
        r" -m search\.run +([^\n`]*)", text
    )
    return [re.split(r" +#| &$| \|", line)[0].strip() for line in found]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_yes_of_ours_has_a_test(row: list[str]) -> None:
    found = re.match(r'\[yes\]\(\.\./(tests/\S+\.py) "(test_\w+)"\)', row[-1])
    assert found is not None, row[-1]
    assert re.search(rf"^ *def {found[2]}\(", (ROOT / found[1]).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_has_rows() -> None:
    assert len(ROWS) > 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", page.read_text(encoding="utf-8"))
    inside = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_given(page: Path) -> None:
    made = {"new-loss.md": "total-variation", "new-sampler.md": "climbing"}.get(page.name, "$")
    for command in commands(page):
        if command not in ("--help", "...", "") and "$" not in command and made not in command:
            assert read_flags(shlex.split(command)).budget


def test_commands_are_found() -> None:
    assert len(commands(PAGES[0])) >= 8
    assert sum(len(commands(page)) for page in PAGES) > 25


def test_the_readme_is_short() -> None:
    """One sentence, two commands, a picture, one table of results, own use, links; the rest is in docs/."""
    assert len(README.splitlines()) <= 150
    assert README.split("\n\n")[2].splitlines()[0].startswith("    make demo")
    results = README.split("## Results")[1].split("\n## ")[0]
    assert len(re.findall(r"^\|-", README, re.MULTILINE)) == 2, "a table of results and one of links"
    assert len(re.findall(r"^\|-", results, re.MULTILINE)) == 1


def test_its_results_are_those_of_the_page_about_them() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\d.*\|$", README.split("## Results")[1].split("\n## ")[0], re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        figures = [cell.strip(" *") for cell in row.strip("|").split("|")][1:]
        assert any(all(figure in line for figure in figures) for line in page.splitlines()), row


def test_every_page_can_be_reached_from_it() -> None:
    own = [page for page in PAGES[1:] if page.name != "index.md"]
    assert [page.name for page in own if f"(docs/{page.name})" not in README] == []
