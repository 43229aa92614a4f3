"""The rules of the house: where imports run, how long things are, what is documented.

Every rule is also shown a tree that breaks it, so that a green test means something.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, permutations, product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: From the top down; imports run rightwards only.
PACKAGES = ("studies", "search", "evaluators", "space")
ALL = (*PACKAGES, "tests")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "common", "misc"}

Rule = Callable[[Path], list[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(root: Path, packages: tuple[str, ...] = ALL) -> Iterator[Path]:
    """Every module of the packages and tests, or of these, relative to ``root``."""
    for package in packages:
        yield from (path.relative_to(root) for path in sorted((root / package).rglob("*.py")))


def parsed(root: Path, path: Path) -> ast.Module:
    return _parsed(root / path, (root / path).stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(root: Path, packages: tuple[str, ...] = ALL) -> Iterator[tuple[Path, ast.Module]]:
    """Every module as ``files`` yields them, and its tree."""
    return ((path, parsed(root, path)) for path in files(root, packages))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a tree that can hold a statement; expressions, most of a tree, are left out."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from statements(child)


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module and public methods of public classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def is_override(node: Function | ast.ClassDef) -> bool:
    """Whether the docstring is the parent's (``@override``) or the getter's (``@x.setter``)."""
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    return any(mark.split(".")[-1] in {"override", "overload", "setter"} for mark in marks)


def long_files(root: Path) -> list[str]:
    paths = [root / path for path in files(root)]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE]


def long_functions(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name}"
        for path, tree in modules(root)
        for node in statements(tree)
        if isinstance(node, Function)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]


def empty_names(root: Path) -> list[str]:
    return [str(path) for path in files(root) if path.stem in NAMES_THAT_SAY_NOTHING]


def undocumented(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name}"
        for path, tree in modules(root, PACKAGES)
        for node in public(tree.body)
        if not is_override(node) and not ast.get_docstring(node)
    ]


def modules_without_reason(root: Path) -> list[str]:
    return [
        str(path)
        for path, tree in modules(root, PACKAGES)
        if path.name != "__init__.py" and not ast.get_docstring(tree)
    ]


def is_re_export(node: ast.stmt) -> bool:
    """Whether a statement is an import, a docstring or ``__all__``."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    return isinstance(node, ast.Import | ast.ImportFrom)


def full_inits(root: Path) -> list[str]:
    return [
        str(path)
        for path in files(root)
        if path.name == "__init__.py" and not all(map(is_re_export, parsed(root, path).body))
    ]


RULES: list[Rule] = [
    long_files,
    long_functions,
    empty_names,
    undocumented,
    modules_without_reason,
    full_inits,
]
NAMES = [rule.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_house_is_in_order(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_every_package_is_there() -> None:
    assert {path.parts[0] for path in files(ROOT)} == set(ALL)


BROKEN = {
    "space/long.py": '"""Why."""\n' + "x = 1\n" * MOST_LINES_OF_A_FILE,
    "space/function.py": '"""Why."""\n\n\ndef _long() -> None:\n' + "    x = 1\n" * MOST_LINES_OF_A_FUNCTION,
    "search/utils.py": '"""Why."""\n',
    "search/silent.py": '"""Why."""\n\n\nclass Silent:\n    """It."""\n\n    def speak(self) -> None: ...\n',
    "search/reasonless.py": "x = 1\n",
    "studies/__init__.py": '"""Why."""\nimport ast\n__all__ = ["ast"]\n',
    "evaluators/__init__.py": "def loss() -> None:\n    '''Of it.'''\n",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    for name, text in BROKEN.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (long_files, ["long.py: 401 lines"]),
        (long_functions, ["space/function.py:4: _long"]),
        (empty_names, ["search/utils.py"]),
        (undocumented, ["search/silent.py:7: speak"]),
        (modules_without_reason, ["search/reasonless.py"]),
        (full_inits, ["evaluators/__init__.py"]),
    ],
    ids=NAMES,
)
def test_every_rule_can_fail(rule: Rule, found: list[str], broken: Path) -> None:
    complaints = rule(broken)
    assert len(complaints) == len(found)
    assert all(complaint.endswith(end) for complaint, end in zip(complaints, found, strict=True))


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the project's own contracts over the packages of ``root``."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def layers_of(container: str) -> list[list[str]]:
    """The layers within a package as pyproject.toml has them, from the top down; siblings in a row."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("containers") == [container])
    return [row.split(" | ") for row in layers]


def forbidden(rows: list[list[str]]) -> Iterator[tuple[str, str]]:
    """(from, to) of every import that a contract over these rows has to refuse."""
    for number, row in enumerate(rows):
        yield from ((lower, upper) for above in rows[:number] for upper in above for lower in row)
        yield from permutations(row, 2)


#: Every package of the tree that is tried, with its rows; the first has no package above it.
HOUSES = {"": [[package] for package in PACKAGES]} | {name: layers_of(name) for name in PACKAGES[1:]}


def place(container: str, module: str) -> str:
    return f"{container}.{module}".strip(".")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """All packages of the contracts, each importing the ones below it, under the project's contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for container, rows in HOUSES.items():
        for module in (module for row in rows for module in row):
            folder = tmp_path / place(container, module).replace(".", "/")
            folder.mkdir()
            (folder / "__init__.py").touch()
            if container or module == "studies":
                (folder / "base.py").touch()
    for container, rows in HOUSES.items():
        for upper_row, lower_row in combinations(rows, 2):
            for upper, lower in product(upper_row, lower_row):
                add_import(tmp_path, container, upper, lower)
    return tmp_path


def add_import(root: Path, container: str, source: str, target: str) -> tuple[str, str]:
    """Let one package import another; the modules that do and that are imported."""

    def inside(module: str) -> str:
        """Of a package of packages the first module of its lowest."""
        name = place(container, module)
        return f"{name}.{HOUSES[name][-1][0]}" if name in HOUSES else name

    source_module, target_module = f"{inside(source)}.from_{target}", f"{inside(target)}.base"
    (root / f"{source_module.replace('.', '/')}.py").write_text(f"import {target_module}\n")
    return source_module, target_module


def test_imports_run_downward() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(HOUSES)} kept, 0 broken" in done.stdout


def test_the_contracts_allow_imports_that_run_downward(packages: Path) -> None:
    done = lint_imports(packages)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_refuse_every_other_import(packages: Path) -> None:
    added = [
        add_import(packages, container, source, target)
        for container, rows in HOUSES.items()
        for source, target in forbidden(rows)
    ]
    done = lint_imports(packages)
    assert done.returncode == 1
    for source_module, target_module in added:
        assert f"{source_module} -> {target_module}" in done.stdout


def test_no_exception_is_made() -> None:
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


def imports_of(root: Path) -> dict[str, set[str]]:
    """Which modules of the packages each of them imports, late imports and those for types included."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files(root)}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        named = set()
        for node in statements(parsed(root, path)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {one if one in names else node.module for one in whole}
        graph[name] = (named & names.keys()) - {name}
    return graph


def circle(graph: dict[str, set[str]]) -> tuple[str, ...]:
    """One circle of imports; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def test_no_files_import_one_another_in_a_circle() -> None:
    assert circle(imports_of(ROOT)) == ()


def test_a_circle_is_found_even_if_it_is_for_types_or_late(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space/__init__.py").touch()
    (tmp_path / "space/one.py").write_text("if TYPE_CHECKING:\n    from space.two import X\n")
    (tmp_path / "space/two.py").write_text("def f():\n    from space import three\n")
    (tmp_path / "space/three.py").write_text("import space.one\n")
    assert set(circle(imports_of(tmp_path))) == {"space.one", "space.two", "space.three"}
