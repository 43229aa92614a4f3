"""The page about the architecture: its picture has the packages, and its walk is the way that a run goes."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from tests.docs.pages import DOCS, ROOT, Follower
from tests.small_search import SMALL, write_stories, write_teacher
from tests.warm_python import warm_run

PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")
MOST_STATIONS = 12
SVG = "{http://www.w3.org/2000/svg}"
#: Runs the search and writes down which stations were called, in the order of their first calls. A station
#: gets code that notes the call and goes on: however it was imported, and nothing else is slowed down.
TRACER = """
import builtins, functools, importlib, inspect, json, sys, types
from pathlib import Path
stations, where, *arguments = sys.argv[1:]
stations, called = json.loads(stations), []
def arrive(number, args, kwargs):
    if stations[number] not in called:
        called.append(stations[number])
    return originals[number](*args, **kwargs)
def noted(number, function):
    original = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    original.__defaults__, original.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    found = {}
    exec(f"def station(*args, **kwargs): return arrive({number}, args, kwargs)", found)
    function.__code__ = found["station"].__code__
    return original
def function_of(file, name):
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return inspect.unwrap(functools.reduce(getattr, name.split("."), module))
builtins.arrive = arrive
originals = [noted(number, function_of(*station)) for number, station in enumerate(stations)]
from search.run import main
status = main(arguments)
Path(where).write_text(json.dumps(called))
sys.exit(status)
"""


class Station(NamedTuple):
    """One of the walk."""

    number: int
    file: str
    function: str
    words: str


STATIONS = [
    Station(int(number), *words)
    for number, *words in re.findall(r"^(\d+)\. `(.+?)` · `(.+?)`<br>\n   (.+)$", PAGE, re.MULTILINE)
]


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


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(file, function) of the stations of a small run in the order of the first calls."""
    folder = tmp_path_factory.mktemp("walk")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    stations = json.dumps([(station.file, station.function) for station in STATIONS])
    command = [sys.executable, "-c", TRACER, stations, "called.json"]
    command += ["--budget", "60%", "--model", "teacher", "--data", "stories.txt", *SMALL.split()]
    environment = Follower(folder).environment
    done = warm_run(command, cwd=folder, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("runs/*/report.html"))
    return [(file, function) for file, function in json.loads((folder / "called.json").read_text())]


def test_a_run_calls_the_stations_in_the_order_of_the_page(called: list[tuple[str, str]]) -> None:
    assert called == [(station.file, station.function) for station in STATIONS]


def pictured() -> dict[str, list[str]]:
    """The packages of the picture, from the top down, by the package that they are in."""
    picture = re.search(r"!\[[^]]*\]\((\S+packages\.svg)\)", PAGE)
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
