"""The README's word: what it links to is there, its commands are ones, and each "yes" has its test."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from search.settings.command_line import read_flags

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.split("## Beside other tools")[1].split("\n## ")[0].splitlines()
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
    found = re.match(r'\[yes\]\((tests/\S+\.py) "(test_\w+)"\)', row[-1])
    assert found is not None, row[-1]
    assert re.search(rf"^ *def {found[2]}\(", (ROOT / found[1]).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_has_rows() -> None:
    assert len(ROWS) > 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", page.read_text(encoding="utf-8"))
    inside = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [PAGES[0], ROOT / "docs" / "options.md"], ids=lambda page: page.name)
def test_commands_can_be_given(page: Path) -> None:
    for command in commands(page):
        if command not in ("--help", "..."):
            assert read_flags(shlex.split(command)).budget


def test_commands_are_found() -> None:
    assert len(commands(PAGES[0])) > 15
