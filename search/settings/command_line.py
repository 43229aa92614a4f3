"""Parse the command line and TOML presets into ``Flags``."""

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

#: Flags whose name cannot be the name of a dataclass field, with the name of the field.
_FIELDS = {"try": "try_"}


_DESCRIPTION = """examples:
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
    """Parse the command line; the preset that it names, if any, supplies the defaults.

    Raises:
        InputError: a value is not allowed.
        SystemExit: tyro printed the help (status 0) or an error in the flags (status 2).
    """
    flags = tyro.cli(
        Flags,
        args=arguments,
        default=_preset(arguments),
        prog=_program(),
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    # Imported late because it loads PyTorch, which help and shell completion do not need.
    from search.settings.flag_rules import check_flags

    check_flags(flags)
    return flags


def _program() -> str:
    """Program name for the help: ``slimsearch``, which shells can complete, or ``python -m search.run``."""
    name = Path(sys.argv[0]).name
    return name if name == "slimsearch" else "python -m search.run"


def _preset(arguments: list[str]) -> Flags:
    """Flags from the preset that the arguments name, or the default flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", type=Path, nargs="?")
    named = parser.parse_known_args(arguments)[0].preset
    return Flags() if named is None else load_preset(named)


def load_preset(path: Path) -> Flags:
    """Load flags from a TOML file whose keys are the names of flags, written with ``-`` or ``_``.

    Raises:
        InputError: the file cannot be read, a key is not a flag, or a flag does not accept its value.
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
    types = get_type_hints(Flags)
    for name, value in values.items():
        try:
            values[name] = _convert(types[name], value)
        except TypeError:
            raise InputError(
                "Every value of a preset has to be one that its flag takes",
                f"{path} holds {name} = {value!r}",
                "See python -m search.run --help",
            ) from None
    return replace(Flags(), **values)


def _convert(flag_type: Any, value: Any) -> Any:
    """Convert a TOML value to the type of its flag.

    A number is accepted where the flag takes text such as ``64k``, and one string where it takes a list.

    Raises:
        TypeError: the flag does not accept the value.
    """
    if NoneType in get_args(flag_type):
        flag_type = get_args(flag_type)[0]
    if get_origin(flag_type) is tuple and isinstance(value, list | str):
        items = [value] if isinstance(value, str) else value
        return tuple(_convert(get_args(flag_type)[0], item) for item in items)
    if get_origin(flag_type) is Literal and value in get_args(flag_type):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (flag_type in (str, Path) and isinstance(value, str)) or (flag_type in (str, float) and number):
        return flag_type(value)
    if flag_type in (int, bool) and type(value) is flag_type:
        return value
    raise TypeError
