"""The command line and the presets, read as flags."""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from evaluators.huggingface.library_output import short_message
from search.settings.flags import Flags
from space.input_error import InputError

#: Flags whose field cannot have their name.
_FIELDS = {"try": "try_"}


_ABOUT = """examples:
  python -m search.run --budget 1M
  python -m search.run --budget 60% --model path/to/model --data text.txt
  python -m search.run --budget 4B --plan

Find the best smaller model inside a big one.

The same command goes on where a run was stopped, and joins one that is at work. The result goes to stdout.

exit status:
  0    the run is complete
  2    the input cannot be worked with; what was said on stderr has the remedy
  130  the run was stopped
  1    one of several processes that trained together was lost
"""


def read_flags(arguments: list[str]) -> Flags:
    """Read the command line on top of the preset that it names.

    Raises:
        InputError: a value breaks its rule.
        SystemExit: tyro printed help (status 0) or a mistake in the flags (status 2).
    """
    flags = tyro.cli(
        Flags,
        args=arguments,
        default=_preset(arguments),
        prog=_program(),
        description=_ABOUT,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from search.settings.flag_rules import (
        check_flags,  # loads PyTorch, which help and completions do not wait for
    )

    check_flags(flags)
    return flags


def _program() -> str:
    """How the command was called: by its name, which shells can complete, or as a module."""
    name = Path(sys.argv[0]).name
    return name if name == "slimsearch" else "python -m search.run"


def _preset(arguments: list[str]) -> Flags:
    """The flags of the preset that the arguments name, or the defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", type=Path, nargs="?")
    named = parser.parse_known_args(arguments)[0].preset
    return Flags() if named is None else load_preset(named)


def load_preset(path: Path) -> Flags:
    """Flags from a TOML file whose keys are the names of flags, with ``-`` or ``_``.

    Raises:
        InputError: the file cannot be read, a key is no flag, or a value is not one that it takes.
    """
    remedy = "Name a TOML file such as those under studies/"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("A preset has to be a readable file", f"{path}: {error.strerror}", remedy) from None
    except ValueError as error:
        raise InputError("A preset has to be TOML", f"{path}: {short_message(error)}", remedy) from None
    values: dict[str, Any] = {_FIELDS.get(key, key.replace("-", "_")): value for key, value in table.items()}
    known = {field.name for field in fields(Flags)} - {"preset"}
    if unknown := sorted(values.keys() - known):
        raise InputError(
            "Every key of a preset has to be a flag",
            f"{path} holds {', '.join(unknown)}",
            "See python -m search.run --help",
        )
    kinds = get_type_hints(Flags)
    for name, value in values.items():
        try:
            values[name] = _of_kind(kinds[name], value)
        except TypeError:
            raise InputError(
                "Every value of a preset has to be one that its flag takes",
                f"{path} holds {name} = {value!r}",
                "See python -m search.run --help",
            ) from None
    return replace(Flags(), **values)


def _of_kind(kind: Any, value: Any) -> Any:
    """A value of TOML as a flag of this kind has it; numbers will do for text, since text may be ``64k``.

    One text will do for a list of texts.

    Raises:
        TypeError: the flag does not take it.
    """
    if NoneType in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple and isinstance(value, list | str):
        items = [value] if isinstance(value, str) else value
        return tuple(_of_kind(get_args(kind)[0], item) for item in items)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (kind in (str, Path) and isinstance(value, str)) or (kind in (str, float) and number):
        return kind(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise TypeError
