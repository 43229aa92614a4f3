"""The page about the architecture: its picture has the packages, and its walk leads through functions.

That a run goes this way is seen in ``tests/search/test_run.py``.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.docs.walk import PAGE, Station, stations

MOST_STATIONS = 12
STATIONS = stations()
SVG = "{http://www.w3.org/2000/svg}"


def functions_of(file: str) -> set[str]:
    """The functions of a module, and the methods of its classes, by their qualified names."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        found |= {f"{owner.name}.{node.name}" for node in owner.body if isinstance(node, ast.FunctionDef)}
    return found


def test_the_walk_is_short_and_leads_from_the_command_to_the_report() -> None:
    assert [station.number for station in STATIONS] == list(range(1, len(STATIONS) + 1))
    assert 2 < len(STATIONS) <= MOST_STATIONS
    assert STATIONS[0][1:3] == ("search/run.py", "main")
    assert STATIONS[-1][1:3] == ("search/report/document.py", "write_report")


@pytest.mark.parametrize("station", STATIONS, ids=lambda station: station.function)
def test_a_station_is_there_and_told_in_one_sentence(station: Station) -> None:
    assert station.function in functions_of(station.file)
    assert re.fullmatch(r"[A-Z`][^.]*(\.\w[^.]*)*\.", station.words.replace("`models/`", "it"))


def pictured() -> dict[str, list[str]]:
    """The packages of the picture, from the top down, by the package that they are in."""
    picture = re.search(r"!\[[^]]*\]\((\S+packages\.svg)\)", PAGE.read_text(encoding="utf-8"))
    assert picture is not None, "the page shows no picture of the packages"
    groups = ElementTree.parse(DOCS / picture[1]).getroot().iter(f"{SVG}g")
    spans = f".//{SVG}tspan[@class='package']"
    return {group.attrib["id"]: [span.text or "" for span in group.iterfind(spans)] for group in groups}


def test_the_picture_has_every_package_of_the_contracts_in_their_order_and_no_other() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    whole = next(one["layers"] for one in contracts if "containers" not in one)
    inside = {
        one["containers"][0]: [name for row in one["layers"] for name in row.split(" | ")]
        for one in contracts
        if "containers" in one
    }
    assert list(pictured()) == whole
    assert pictured() == {name: inside.get(name, []) for name in whole}


def test_every_package_of_the_picture_is_in_the_tree() -> None:
    for package, names in pictured().items():
        for name in names:
            path: Path = ROOT / package / name
            assert (path / "__init__.py").exists() or path.with_suffix(".py").exists()
