"""What stands under the fields of a dataclass of flags, as their help."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Annotated, Any, TypeVar, get_type_hints

from typing_extensions import Doc

T = TypeVar("T")


def documented(flags: type[T]) -> type[T]:
    """Make the text under each field its help, as one paragraph.

    tyro reads such texts by itself, but keeps the line breaks of the source in help and completions.
    """
    hints = get_type_hints(flags, include_extras=True)
    for name, text in _texts(flags).items():
        flags.__annotations__[name] = Annotated[hints[name], Doc(" ".join(text.split()))]
    return flags


def _texts(flags: type[Any]) -> dict[str, str]:
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(flags))).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(found.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = text
    return texts
