"""What holds for every page: it is short, its links and commands are there; and the reader of pages."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, KINDS, ROOT, Follower, apply, blocks, steps

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
#: The flags of ``search.run``, as its source has them.
_SOURCE = (ROOT / "search" / "settings" / "flags.py").read_text(encoding="utf-8")
FLAGS = set(re.findall(r"^    (\w+): ", _SOURCE, re.MULTILINE)) | {"try"}

#: The packages and folders of the project, at the beginning of a name.
OURS = r"(?:search|space|evaluators|studies|tests)"
#: Of ``space.families`` and ``search.choose``.
OF_OTHERS = {"write", "save", "max_latency", "max_memory", "max_parameters"}


def is_known(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module, _, inside = name.rpartition(".")
    found = ROOT / module.replace(".", "/")
    file = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
    return file.exists() and re.search(rf"\b{inside}\b", file.read_text()) is not None


def commands(page: str) -> list[list[str]]:
    """The words of every command that a page has for a shell."""
    found = []
    for block in blocks(page):
        lines = []
        if block.kind == "console":
            lines = [step.command for step in steps(block.text)]
        elif block.kind == "sh":
            lines = block.text.replace("\\\n", " ").splitlines()
        found += [shlex.split(line, comments=True) for line in lines]
    return found


@pytest.mark.parametrize("page", PAGES)
class TestPage:
    def test_it_is_short_and_of_known_blocks(self, page: str) -> None:
        assert len((DOCS / page).read_text().splitlines()) <= 150
        assert {block.kind for block in blocks(page)} <= set(KINDS)
        fences = re.findall(r"^```", (DOCS / page).read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), "a fence that the reader of pages does not see"

    def test_its_links_lead_somewhere(self, page: str) -> None:
        folder = (DOCS / page).parent
        for link in re.findall(r"\]\(([^)#\s]+)", (DOCS / page).read_text()):
            assert link.startswith("https://") or (folder / link).exists(), link

    def test_files_and_modules_in_its_text_are_there(self, page: str) -> None:
        text = (DOCS / page).read_text()
        made = {block.beside for block in blocks(page) if block.kind == "python"}
        made |= {name.removesuffix(".py").replace("/", ".") for name in made}
        files = set(re.findall(rf"(?<![\w/]){OURS}/[\w/]*(?:\.\w+)?", text)) - made
        assert [name for name in files if not (ROOT / name).exists()] == []
        modules = set(re.findall(rf"(?<![\w./]){OURS}(?:\.\w+)+", text)) - made
        assert [name for name in modules if not is_known(name)] == []

    def test_its_shell_is_bash(self, page: str) -> None:
        for block in blocks(page):
            if block.kind == "sh":
                subprocess.run(["bash", "-n", "-c", block.text], check=True, timeout=20)

    def test_its_modules_and_flags_are_there(self, page: str) -> None:
        for words in commands(page):
            if "-m" not in words:
                continue
            start = words.index("-m") + 1
            assert find_spec(words[start]) is not None, words[start]
            if words[start] == "search.run":
                flags = {word[2:].replace("-", "_") for word in words[start:] if word.startswith("--")}
                assert flags <= FLAGS

    def test_flags_in_its_text_are_there_too(self, page: str) -> None:
        told = re.findall(r"`--([a-z-]+)[ =`]", (DOCS / page).read_text())
        assert {name.replace("-", "_") for name in told} <= FLAGS | OF_OTHERS


class TestReader:
    """A page that says what is not so fails."""

    @pytest.fixture
    def follower(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follower:
        monkeypatch.setattr("tests.docs.pages.DOCS", tmp_path)
        return Follower(tmp_path, settings={"WHO": "you"})

    def test_commands_files_and_changes_are_done_in_their_order(
        self, follower: Follower, tmp_path: Path
    ) -> None:
        (tmp_path / "page.md").write_text(
            "```console\n$ WHO=me\n$ echo one $WHO; echo two\none you\ntwo\n```\n"
            "```python a.py\nprint(1)\n```\n"
            "```diff\n--- a/a.py\n+++ b/a.py\n@@\n-print(1)\n+print(2)\n```\n"
            "```console\n$ python a.py\n2\n```\n```text\nnot $(this)\n```\n"
        )
        follower.follow("page.md")
        assert (tmp_path / "a.py").read_text() == "print(2)\n"

    @pytest.mark.parametrize(
        ("page", "problem"),
        [
            ("```console\n$ WHO=me\n$ echo one\ntwo\n```\n", "does not say 'two'"),
            ("```console\n$ WHO=me\n$ echo two; echo one\none\ntwo\n```\n", "does not say 'two'"),
            ("```console\n$ WHO=me\n$ exit 3\n```\n", "exit 3"),
            ("```python\nraise SystemExit(1)\n```\n", "SystemExit"),
            ("```console\n$ echo one\n```\n", "does not set WHO"),
        ],
    )
    def test_what_does_not_end_as_the_page_says_fails(
        self, page: str, problem: str, follower: Follower, tmp_path: Path
    ) -> None:
        (tmp_path / "page.md").write_text(page)
        with pytest.raises(AssertionError, match=re.escape(problem)):
            follower.follow("page.md")

    @pytest.mark.parametrize(("text", "times"), [("b\n", 0), ("a\na\n", 2)])
    def test_a_change_has_one_place(self, text: str, times: int, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text(text)
        with pytest.raises(AssertionError, match=f"has {times} times"):
            apply("--- a/a.py\n+++ b/a.py\n@@ here\n-a\n+c\n", tmp_path)
