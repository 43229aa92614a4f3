"""What can be cut of every type of causal language model that transformers has, found by trying.

Each type is tried at a tiny size as a teacher of its class would be (``space.verification``), with more
random students than at run time; the students are then read back by a process that knows nothing of
this project.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from space import families
from space.axes.architecture import Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap
from space.discovery.probing import refusal_reason
from space.discovery.sizing import HiddenTie
from space.input_error import InputError
from space.verification.contract import contract_breach
from space.verification.reload import captured_warnings, load_errors, random_student, save_for_check
from space.verification.verification import Verified, verify

TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
#: Random students for each axis alone, and for all together; those of run time among them.
DRAWS = 8
_SECONDS = 240


@dataclass(frozen=True)
class SupportRow:
    """One type's line of the table."""

    model_type: str
    cut: tuple[str, ...] = ()
    """The axes that are cut, each with those that the class moves along: ``hidden (with heads)``."""
    refused: dict[str, str] = field(default_factory=dict)
    """Axes that are not, with the reason."""
    tied: dict[str, str] = field(default_factory=dict)
    """Axes that have no size of their own to choose, with the reason."""
    reason: str = ""
    """Why nothing is cut."""
    late: bool = False
    """Something failed that a teacher is not refused for at run time."""

    @property
    def verdict(self) -> str:
        """``all``, ``some`` or ``none`` of the axes that the type has."""
        return "none" if self.reason else "some" if self.refused else "all"


def support_rows(
    types: Sequence[str], processes: int = 2, report: Callable[[SupportRow], None] = lambda row: None
) -> list[SupportRow]:
    """Try types, each for itself, and have their students read back in a new process.

    Args:
        types: names of model types.
        processes: at a time.
        report: is told each row as it is found.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {row.model_type: row for row in _tried(types, Path(folder), processes, report)}
        wrong = load_errors(Path(folder)) if any(Path(folder).iterdir()) else {}
    for name, what in wrong.items():
        if what:
            reason = f"none of its students can be read back by a new process: {what}"
            found[name] = SupportRow(name, reason=_tidy(reason), late=True)
    return [found[model_type] for model_type in types]


def _tried(
    types: Sequence[str], folder: Path, processes: int, report: Callable[[SupportRow], None]
) -> Iterator[SupportRow]:
    spawn = get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(types)), mp_context=spawn, initializer=_one_thread) as pool:
        work = {pool.submit(try_type, model_type, folder): model_type for model_type in types}
        for done in as_completed(work):
            try:
                row = done.result()
            except BrokenProcessPool:
                row = SupportRow(work[done], reason="a process ended while it was on trial", late=True)
            report(row)
            yield row


def _one_thread() -> None:
    torch.set_num_threads(1)


def try_type(model_type: str, folder: Path | None = None) -> SupportRow:
    """Try one type, in this process.

    Args:
        model_type: of transformers' mapping of causal language models.
        folder: where to leave a student for ``load_errors``; None to leave none.
    """
    try:
        with captured_warnings(), _at_most(_SECONDS):
            return _row(model_type, folder)
    except InputError as error:
        shown = error.values.removeprefix(f"{model_type!r} is not: ").removeprefix(f"in {model_type!r}, ")
        return SupportRow(model_type, reason=_tidy(shown))
    except TimeoutError:
        return SupportRow(model_type, reason=f"its trial takes more than {_SECONDS} seconds", late=True)
    except Exception as error:
        what = f"{type(error).__name__}: {refusal_reason(error)}"
        return SupportRow(
            model_type, reason=_tidy(f"its class does not run at a tiny size ({what})"), late=True
        )


def _row(model_type: str, folder: Path | None) -> SupportRow:
    try:
        config = CONFIG_MAPPING[model_type]()
    except BUILD_ERRORS as error:
        return SupportRow(
            model_type, reason=_tidy(f"its class refuses its own defaults ({refusal_reason(error)})")
        )
    verified = verify(config)
    late = _late_failures(verified)
    verified = replace(verified, small=replace(verified.small, refused={**verified.small.refused, **late}))
    axis_map = verified.small
    refused, tied = _refusals(verified)
    if not axis_map.free:
        reasons = "; ".join(f"{axis}: {why}" for axis, why in (refused | tied).items())
        return SupportRow(model_type, reason=f"none of its axes can be cut ({reasons})", late=bool(late))
    made = random_student(verified.model, axis_map, seed=DRAWS) if folder else None
    if made and folder:
        save_for_check(made[0], axis_map.config, folder / model_type)
    cut = tuple(map(_with_followers(axis_map), axis_map.free))
    return SupportRow(model_type, cut, refused, tied, late=bool(late))


def _late_failures(verified: Verified) -> dict[Axis, str]:
    """What fails at more random students than a teacher is tried with at run time."""

    def first(axes: Collection[Axis]) -> str | None:
        found = (contract_breach(verified.model, verified.small, axes, seed) for seed in range(DRAWS))
        return next(filter(None, found), None)

    late = {axis: found for axis in verified.small.free if (found := first([axis]))}
    left = [axis for axis in verified.small.free if axis not in late]
    if left and (found := first(left)):
        late |= dict.fromkeys(left, f"together with the others, {found}")
    return late


def _refusals(verified: Verified) -> tuple[dict[str, str], dict[str, str]]:
    """Reasons of refused axes: those that fail, and those that have no size of their own to choose."""
    axis_map = verified.small
    followers = {c.of: [d.axis for d in axis_map.couplings if d.of is c.of] for c in axis_map.couplings}
    refused: dict[str, str] = {}
    tied: dict[str, str] = {}
    for axis, why in axis_map.refused.items():
        one = axis is Axis.KV_HEADS and axis_map.teacher.kv_heads == 1
        instead = axis is Axis.HEADS and verified.tie is HiddenTie.HEAD_DIM and Axis.HIDDEN in axis_map.free
        along = (other for other in followers.get(axis, ()) if other not in axis_map.refused)
        (tied if one or instead else refused)[" and ".join((axis, *along))] = _tidy(why)
    return refused, tied


def _with_followers(axis_map: AxisMap) -> Callable[[Axis], str]:
    def followers(axis: Axis) -> list[Axis]:
        own = [c.axis for c in axis_map.couplings if c.of is axis and c.axis not in axis_map.refused]
        return [one for of in own for one in (of, *followers(of))]

    def named(axis: Axis) -> str:
        others = followers(axis)
        return f"{axis} (with {', '.join(others)})" if others else axis.value

    return named


def _tidy(reason: str) -> str:
    """On one line, no longer than a user reads, without the names of exceptions that say nothing."""
    one_line = " ".join(reason.split())
    return re.sub(r"\b(ValueError|RuntimeError|AssertionError): ", "", one_line)[:240]


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer, where the platform and thread can tell."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def summary(table: Sequence[SupportRow]) -> str:
    """How many types are cut along all, some and none of their axes, and why the last are not."""
    verdicts = Counter(row.verdict for row in table)
    heads = Counter(re.split(r"[:;,(]", row.reason)[0].strip() for row in table if row.reason)
    classes = [f"{count} because {head}" for head, count in heads.most_common() if count > 1]
    others = sum(count for count in heads.values() if count == 1)
    classes += [f"{others} for reasons of {'its' if others == 1 else 'their'} own"] if others else []
    refused = f"{verdicts['none']} are refused" + (f": {', '.join(classes)}" if classes else "")
    counted = f"{len(table)} types: {verdicts['all']} pass for every axis that they have"
    return f"{counted}, {verdicts['some']} for some, {refused}."


def markdown(table: Sequence[SupportRow]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| Type | Cut along | Not cut, and why |", "| --- | --- | --- |"]
    for row in table:
        cut = ", ".join(row.cut) or "–"
        why = "; ".join(f"{axis}: {reason}" for axis, reason in (row.refused | row.tied).items())
        cells = (f"`{row.model_type}`", cut, row.reason or why or "–")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def log_progress(row: SupportRow) -> None:
    """Progress on standard error."""
    print(f"{row.model_type}: {', '.join(row.cut) or row.reason}", file=sys.stderr, flush=True)


_WHAT = "Try types of causal language models and print along which axes each can be cut."
TABLE = Path(families.__path__[0]) / "SUPPORT.md"
_HEADING = """# Which teachers can be cut, and along which axes

Found by trying every type of causal language model of transformers {version}:

    python -m space.families --write

An axis stands here if students of random sizes and random rankings computed the same as the masked teacher,
along this axis alone and along all at once, and could be saved, read back without a warning by a process
that knows only transformers, and generate the same with a KV cache as without. Axes in brackets are those
that the class moves along. A teacher is tried again, with its own flags, before any work on it.

{summary}
"""


def support_page(table: str, counts: str) -> str:
    """The file that is checked in."""
    return _HEADING.format(version=transformers.__version__, summary=counts) + "\n" + table


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the types that are named, or all; 1 if something fails that a teacher is not refused for."""
    parser = argparse.ArgumentParser(prog="python -m space.families", description=_WHAT)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} of all types")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.types if name not in TYPES]
    if unknown:
        parser.error(f"transformers has no causal language model of type {unknown[0]!r}")
    if asked.write and asked.types:
        parser.error("the table is written of all types; leave the names out, or --write")
    table = support_rows(asked.types or TYPES, report=log_progress)
    print(markdown(table), summary(table), sep="\n")
    if asked.write:
        TABLE.write_text(support_page(markdown(table), summary(table)), encoding="utf-8")
    late = [row.model_type for row in table if row.late]
    if late:
        print(f"Not refused at run time in the same words: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0
