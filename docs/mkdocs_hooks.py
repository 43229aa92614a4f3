"""What mkdocs does beyond its configuration: pages from docstrings, and links that leave ``docs/``.

Pages link to files elsewhere in the repository by plain relative paths, which also work where the tree is
read without the site. Here each such file becomes a page of the site, or is copied if it is an image, and so
does what that page links to in turn.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("search", "evaluators", "space")
#: Folder of the site for files from outside ``docs/``.
OUTSIDE = "repository"
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=(?: \"[^\"]*\")?\))")
_IMAGES = {".png", ".svg"}
_LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".jsonl": "json", ".j2": "html"}
#: Source files are not worth a result when someone searches the documentation.
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages about the packages to the navigation."""
    reference: list[object] = ["api/index.md"]
    for package in PACKAGES:
        pages = [{name.removeprefix(f"{package}.") or name: _api_page(name)} for name in _units(package)]
        reference.append({package: pages})
    assert config.nav is not None
    config.nav.append({"API": reference})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every package, and one for every file that a page links to outside ``docs/``."""
    for package in PACKAGES:
        for name in _units(package):
            files.append(File.generated(config, _api_page(name), content=_api_text(name)))
    texts = {
        _in_repository(page.src_uri): page.content_string
        for page in files.documentation_pages()
        if not page.src_uri.startswith("api/")
    }
    waiting = list(texts.items())
    known: set[str] = set()
    while waiting:
        of, text = waiting.pop()
        for target in sorted(set(_targets(of, text)) - known):
            known.add(target)
            if (added := _file(target, config)) is None:
                continue
            files.append(added)
            if target.endswith(".md") or (ROOT / target).is_dir():
                waiting.append((target, added.content_string))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave ``docs/`` to their pages; list the modules on the first page of the reference."""
    if page.file.src_uri == "api/index.md":
        return markdown + _overview()
    source = _in_repository(page.file.src_uri)
    start = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = _target(source, link["path"])
        if target is None:
            return link[0]
        return posixpath.relpath(_in_site(target), start or ".") + (link["anchor"] or "")

    if source.startswith("docs/") or source.endswith(".md") or (ROOT / source).is_dir():
        return _LINK.sub(led, markdown)
    return markdown


def _in_repository(src_uri: str) -> str:
    """Where a page of the site stands in the repository."""
    if not src_uri.startswith(f"{OUTSIDE}/"):
        return f"docs/{src_uri}"
    path = src_uri.removeprefix(f"{OUTSIDE}/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md").removesuffix("/index")


def _in_site(path: str) -> str:
    """Where a file of the repository stands among the pages of the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{OUTSIDE}/{path}/index.md"
    return f"{OUTSIDE}/{path}" + ("" if Path(path).suffix in _IMAGES | {".md"} else ".md")


def _target(source: str, link: str) -> str | None:
    """The file of the repository that a link means; None if it leads to the web, or nowhere."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _targets(source: str, text: str) -> Iterator[str]:
    for link in _LINK.finditer(text):
        target = _target(source, link["path"])
        if target is not None and not target.startswith("docs/"):
            yield target


def _file(path: str, config: MkDocsConfig) -> File | None:
    """A file from outside ``docs/`` as one of the site."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(name for name in os.listdir(file) if not name.startswith((".", "__")))
        # As links of a page in the folder above.
        lines = [f"- [{name}]({file.name}/{name})" for name in names]
        return File.generated(config, _in_site(path), content=f"# {path}\n\n" + "\n".join(lines) + "\n")
    if file.suffix in _IMAGES:
        return File.generated(config, _in_site(path), abs_src_path=str(file))
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".md":
        language = _LANGUAGES.get(file.suffix, "text")
        text = f"{_UNSEARCHED}# {path}\n\n`````{language}\n{text}\n`````\n"
    return File.generated(config, _in_site(path), content=text)


def _units(package: str) -> list[str]:
    """A package and the packages within it, as the contracts order them; each has a page."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("containers") == [package])
    order = [name for row in layers for name in row.split(" | ")]
    inside = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    return [package, *(f"{package}.{name}" for name in sorted(inside, key=order.index))]


def _modules(unit: str) -> list[str]:
    """The modules that the page of a package shows: all, but for files that are empty."""
    folder = ROOT / unit.replace(".", "/")
    paths = sorted(folder.rglob("*.py") if "." in unit else folder.glob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stat().st_size]
    return [name.removesuffix(".__init__") for name in names]


def _api_page(unit: str) -> str:
    return f"api/{unit}.md"


def _api_text(unit: str) -> str:
    """Docstrings of all modules of a package, one after the other."""
    parts = [f"# `{unit}`\n"]
    for module in _modules(unit):
        # A package shows what it says of itself; its modules follow.
        options = "\n    options:\n      members: false" if _is_package(module) else ""
        parts.append(f"::: {module}{options}\n")
    return "\n".join(parts)


def _is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def _overview() -> str:
    """Every module with the sentence that it begins with."""
    lines = []
    for package in PACKAGES:
        for unit in _units(package):
            lines += [f"\n## [`{unit}`]({unit}.md)\n", "| module | |", "|---|---|"]
            lines += [f"| [`{name}`][{name}] | {_first_sentence(name)} |" for name in _modules(unit)]
    return "\n" + "\n".join(lines) + "\n"


def _first_sentence(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
