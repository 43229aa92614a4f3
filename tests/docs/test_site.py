"""The site as ``make docs`` builds it: no warning, every module, no dead link, and nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from os import environ
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.made_once import made_once

#: Whether links of the pages lead somewhere is seen by default in test_pages.py.
pytestmark = pytest.mark.slow
PACKAGES = ("search", "evaluators", "space")
#: Of every file that says something: empty ``__init__.py`` have no page.
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.stat().st_size and path != ROOT / package / "__init__.py"
]
_LOADING = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What a page has: anchors, links to follow, and addresses that are loaded with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif tag == "a" and name == "href" and value:
                self.links.append(value)
            elif (tag, name) in _LOADING and value:
                self.loaded.append(value)


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as by ``make docs``, with the network out of reach."""
    return made_once(tmp_path_factory, "site", build)


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    no_network = dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = environ | no_network | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def pages(site: Path) -> Iterator[Path]:
    return (path for path in sorted(site.rglob("*.html")) if path.name != "404.html")


def test_every_page_of_docs_is_in_it(site: Path) -> None:
    wanted = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert wanted <= {path.relative_to(site) for path in pages(site)}


def test_every_module_has_its_docstrings_in_it(site: Path) -> None:
    assert len(MODULES) > 100
    for module in MODULES:
        package, *inside = module.split(".")
        unit = f"{package}.{inside[0]}" if (ROOT / package / inside[0]).is_dir() else package
        assert module in read(site / "api" / f"{unit}.html").anchors, (
            f"{module} is missing from the API pages"
        )


def test_the_overview_leads_to_every_module(site: Path) -> None:
    links = {urlsplit(link).fragment for link in read(site / "api" / "index.html").links}
    assert [module for module in MODULES if module not in links] == []


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("search", "search.api.rank"),
        ("search.rungs", "search.rungs.loop.Search.run"),
        ("evaluators.distillation", "evaluators.distillation.losses.Term"),
        ("space.axes", "space.axes.architecture.Architecture"),
    ],
)
def test_public_names_are_shown_and_private_ones_are_not(page: str, name: str, site: Path) -> None:
    anchors = read(site / "api" / f"{page}.html").anchors
    assert name in anchors
    assert [anchor for anchor in anchors if re.search(r"\._[a-z]", anchor)] == []


def test_no_link_is_dead(site: Path) -> None:
    dead = []
    for path in pages(site):
        for link in read(path).links:
            parts = urlsplit(link)
            if parts.scheme or link == "#__tabbed":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            found = target.exists() and (
                not parts.fragment or unquote(parts.fragment) in read(target).anchors
            )
            dead += [] if found else [f"{path.relative_to(site)}: {link}"]
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = {address for path in pages(site) for address in read(path).loaded}
    assert loaded
    assert [address for address in sorted(loaded) if urlsplit(address).scheme not in ("", "data")] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_out_of_docs_lead_to_copies_of_the_files(site: Path) -> None:
    links = read(site / "results.html").links
    assert "repository/studies/LOG.html" in links
    assert "studies" in (site / "repository/studies/LOG.html").read_text(encoding="utf-8")
    assert (site / "repository/studies/demo/report.png").read_bytes() == (
        ROOT / "studies/demo/report.png"
    ).read_bytes()
