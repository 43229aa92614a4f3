"""The walk of the page about the architecture: its stations, and a search that tells which it came to."""

from __future__ import annotations

import json
import re
import sys
from typing import NamedTuple

from tests.docs.pages import DOCS

PAGE = DOCS / "architecture.md"
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


def stations() -> list[Station]:
    """Of the page, in its order."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^(\d+)\. `(.+?)` · `(.+?)`<br>\n   (.+)$", text, re.MULTILINE)
    return [Station(int(number), *words) for number, *words in found]


def traced(flags: list[str], where: str) -> list[str]:
    """The command of a search that writes to a file which stations it came to, [file, function] of each."""
    wanted = json.dumps([(station.file, station.function) for station in stations()])
    return [sys.executable, "-c", TRACER, wanted, where, *flags]
