"""``python -m search.vocabulary --model DIR --data DATA``: a teacher with fewer tokens."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from evaluators.teacher import Teacher, load_teacher
from search.settings.flag_rules import parse_count
from search.settings.scale import default_device
from search.settings.teachers import default_texts
from search.stages.smaller_teacher import STEP, VALIDATION, SmallerTeacher, SmallerVocabulary
from search.terminal import format as words
from search.terminal.command import exit_status, flag_help
from search.terminal.console import Console
from search.terminal.format import text_table
from space.counting.budget import BudgetText
from space.input_error import InputError

_DESCRIPTION = """examples:
  python -m search.vocabulary --model DIR --data DATA
  python -m search.vocabulary --model DIR --data DATA --size 16k --out smaller
  python -m search.run --model smaller --data DATA --budget 80M

Make a teacher with fewer tokens, for a search inside it.

Every text can still be written: rare tokens go, and texts that had them are split further. Without --size,
a table says what each size keeps and costs. Nothing is trained.
"""


def _arg(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@flag_help
@dataclass(frozen=True)
class VocabularyFlags:
    """Make a teacher with fewer tokens, for a search inside it."""

    model: Annotated[str, _arg("DIR|ID")]
    """The teacher: a directory, or an id on the hub."""
    data: Annotated[tuple[str, ...], _arg("DATA ...")] = ()
    """The texts that tokens are ranked by, as for the search. Default: the search's."""
    size: Annotated[str | None, _arg("TOKENS|%")] = None
    """Tokens of the new vocabulary: 16k, or 50% of the teacher's."""
    out: Annotated[Path | None, _arg("DIR")] = None
    """Directory for the teacher with a vocabulary of that size."""
    tokens: Annotated[str, _arg("TOKENS")] = "256k"
    """Tokens of text that are read to rank them."""
    device: Annotated[str | None, _arg("NAME")] = None
    """cpu, cuda, cuda:1, mps. Default: the best there is."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the arithmetic."""
    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""
    json: bool = False
    """Print the table as one JSON list."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Say only the result and errors."""


def main(arguments: list[str] | None = None) -> int:
    """Do what these command-line arguments say, and return the exit status."""
    return exit_status(partial(_main, sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    flags = tyro.cli(
        VocabularyFlags,
        args=arguments,
        prog="python -m search.vocabulary",
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if (flags.size is None) != (flags.out is None):
        raise InputError(
            "A teacher of a size is written to a directory",
            "one of --size and --out was given without the other",
            "Give both, or neither to see what each size costs",
        )
    if flags.out is not None and flags.out.exists():
        raise InputError(
            "Nothing that is there is written over", f"{flags.out} is there", "Name another --out"
        )
    console, read = Console(quiet=flags.quiet), parse_count(flags.tokens, "--tokens")
    size = None if flags.size is None else BudgetText.parse(flags.size)
    with console.running():
        smaller = SmallerTeacher(_teacher(flags), flags.data or default_texts(flags.model), read)
        tokens = None if size is None else _tokens(size, smaller)
        _rank(smaller, console)
        sizes = smaller.sizes() if tokens is None else [smaller.whole, tokens]
        found = _measured(smaller, sizes, console)
        if flags.out is not None:
            smaller.write(sizes[-1], flags.out)
            console.say(f"wrote {flags.out}")
    print(json.dumps([asdict(one) for one in found]) if flags.json else "\n".join(table(found)))
    return 0


def _rank(smaller: SmallerTeacher, console: Console) -> None:
    console.forecast.planned["forward"] = smaller.tokens
    with console.work("how much of the text falls to each token", "forward", smaller.tokens) as advance:
        smaller.rank(advance)


def _measured(smaller: SmallerTeacher, sizes: list[int], console: Console) -> list[SmallerVocabulary]:
    console.forecast.planned["score"] = len(sizes) * VALIDATION
    found = []
    for size in sizes:
        with console.work(f"the teacher with {size:,} tokens", "score", VALIDATION) as advance:
            found.append(smaller.measured(size, advance))
        console.say(f"the teacher with {size:,} tokens: {found[-1].bits_per_byte:.4f} bits per byte")
    return found


def _teacher(flags: VocabularyFlags) -> Teacher:
    return load_teacher(
        flags.model,
        revision=None,
        device=torch.device(flags.device or default_device()),
        dtype=getattr(torch, flags.dtype),
        trust_remote_code=flags.trust_remote_code,
    )


def _tokens(size: BudgetText, smaller: SmallerTeacher) -> int:
    """Return the tokens of a size, a multiple of ``STEP`` where it is a share."""
    amount = size.of(smaller.whole)
    tokens = amount // STEP * STEP if size.relative else amount
    smaller.check(tokens)
    return tokens


def table(sizes: list[SmallerVocabulary]) -> list[str]:
    """Return the lines of the table of sizes."""
    head = ["tokens", "parameters", "of the text", "tokens a byte", "bits a byte"]
    rows = [
        [
            f"{one.tokens:,}",
            words.count(one.parameters),
            f"{one.mass:.2%}",
            f"{one.tokens_per_byte:.4f}",
            f"{one.bits_per_byte:.4f}",
        ]
        for one in sizes
    ]
    return text_table([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
