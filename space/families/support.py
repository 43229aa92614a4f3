"""Test along which axes each causal language model type of transformers can be pruned, and write the table.

Each type is verified at a tiny size, as a teacher of its class would be (``space.verification``), but with
more random students. A new process that imports nothing of this project then reads the students back.
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
#: Random students for each axis alone, and for all together; a run tests the first of the same seeds.
DRAWS = 8
_SECONDS = 240


@dataclass(frozen=True)
class SupportRow:
    """The row of one model type."""

    model_type: str
    cut: tuple[str, ...] = ()
    """The axes that can be pruned, each with the axes coupled to it: ``hidden (with heads)``."""
    refused: dict[str, str] = field(default_factory=dict)
    """The axes that cannot be pruned, with the reason."""
    tied: dict[str, str] = field(default_factory=dict)
    """The axes whose size cannot be chosen separately, with the reason."""
    reason: str = ""
    """Why no axis can be pruned; empty if some can."""
    late: bool = False
    """Whether something failed for which a run would not refuse the teacher."""

    @property
    def verdict(self) -> str:
        """``all``, ``some`` or ``none``: how many of the type's axes can be pruned."""
        return "none" if self.reason else "some" if self.refused else "all"


def support_rows(
    types: Sequence[str], processes: int = 2, report: Callable[[SupportRow], None] = lambda row: None
) -> list[SupportRow]:
    """Test model types separately, and read their students back in a new process.

    Args:
        types: names of model types.
        processes: the number of parallel processes.
        report: called with each row as soon as it is known.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {row.model_type: row for row in _tried(types, Path(folder), processes, report)}
        wrong = load_errors(Path(folder)) if any(Path(folder).iterdir()) else {}
    for name, what in wrong.items():
        if what:
            reason = f"none of its students can be read back by a new process: {what}"
            found[name] = SupportRow(name, reason=_one_line(reason), late=True)
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
    """Test one model type in this process.

    Args:
        model_type: a key of transformers' mapping of causal language models.
        folder: where to save a student for ``load_errors``; None saves none.
    """
    try:
        with captured_warnings(), _time_limit(_SECONDS):
            return _row(model_type, folder)
    except InputError as error:
        shown = error.values.removeprefix(f"{model_type!r} is not: ").removeprefix(f"in {model_type!r}, ")
        return SupportRow(model_type, reason=_one_line(shown))
    except TimeoutError:
        return SupportRow(model_type, reason=f"its trial takes more than {_SECONDS} seconds", late=True)
    except Exception as error:
        what = f"{type(error).__name__}: {refusal_reason(error)}"
        return SupportRow(
            model_type, reason=_one_line(f"its class does not run at a tiny size ({what})"), late=True
        )


def _row(model_type: str, folder: Path | None) -> SupportRow:
    try:
        config = CONFIG_MAPPING[model_type]()
    except BUILD_ERRORS as error:
        return SupportRow(
            model_type, reason=_one_line(f"its class refuses its own defaults ({refusal_reason(error)})")
        )
    verified = verify(config)
    late = _failures_of_more_draws(verified)
    verified = replace(verified, small=replace(verified.small, refused={**verified.small.refused, **late}))
    axis_map = verified.small
    refused, tied = _refusals(verified)
    if not axis_map.free:
        reasons = "; ".join(f"{axis}: {why}" for axis, why in (refused | tied).items())
        return SupportRow(model_type, reason=f"none of its axes can be cut ({reasons})", late=bool(late))
    drawn_student = random_student(verified.model, axis_map, seed=DRAWS) if folder else None
    if drawn_student and folder:
        save_for_check(drawn_student[0], axis_map.config, folder / model_type)
    cut = tuple(map(_with_followers(axis_map), axis_map.free))
    return SupportRow(model_type, cut, refused, tied, late=bool(late))


def _failures_of_more_draws(verified: Verified) -> dict[Axis, str]:
    """Return the axes that fail only with more random students than a run tests, with the reason."""

    def first(axes: Collection[Axis]) -> str | None:
        found = (contract_breach(verified.model, verified.small, axes, seed) for seed in range(DRAWS))
        return next(filter(None, found), None)

    late = {axis: found for axis in verified.small.free if (found := first([axis]))}
    left = [axis for axis in verified.small.free if axis not in late]
    if left and (found := first(left)):
        late |= dict.fromkeys(left, f"together with the others, {found}")
    return late


def _refusals(verified: Verified) -> tuple[dict[str, str], dict[str, str]]:
    """Return the axes that fail, and those whose size cannot be chosen separately, with the reasons."""
    axis_map = verified.small
    followers = {c.of: [d.axis for d in axis_map.couplings if d.of is c.of] for c in axis_map.couplings}
    refused: dict[str, str] = {}
    tied: dict[str, str] = {}
    for axis, why in axis_map.refused.items():
        one = axis is Axis.KV_HEADS and axis_map.teacher.kv_heads == 1
        instead = axis is Axis.HEADS and verified.tie is HiddenTie.HEAD_DIM and Axis.HIDDEN in axis_map.free
        along = (other for other in followers.get(axis, ()) if other not in axis_map.refused)
        (tied if one or instead else refused)[" and ".join((axis, *along))] = _one_line(why)
    return refused, tied


def _with_followers(axis_map: AxisMap) -> Callable[[Axis], str]:
    """Return a function that names an axis together with the axes coupled to it."""

    def followers(axis: Axis) -> list[Axis]:
        own = [c.axis for c in axis_map.couplings if c.of is axis and c.axis not in axis_map.refused]
        return [one for of in own for one in (of, *followers(of))]

    def named(axis: Axis) -> str:
        others = followers(axis)
        return f"{axis} (with {', '.join(others)})" if others else axis.value

    return named


def _one_line(reason: str) -> str:
    """Return a reason on one line of at most 240 characters, without the names of common exceptions."""
    one_line = " ".join(reason.split())
    return re.sub(r"\b(ValueError|RuntimeError|AssertionError): ", "", one_line)[:240]


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer; works in the main thread of a Unix process only."""

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
    """Return a sentence with the numbers of types that pass for all, some and no axes, and why."""
    verdicts = Counter(row.verdict for row in table)
    heads = Counter(re.split(r"[:;,(]", row.reason)[0].strip() for row in table if row.reason)
    classes = [f"{count} because {head}" for head, count in heads.most_common() if count > 1]
    others = sum(count for count in heads.values() if count == 1)
    classes += [f"{others} for reasons of {'its' if others == 1 else 'their'} own"] if others else []
    refused = f"{verdicts['none']} are refused" + (f": {', '.join(classes)}" if classes else "")
    counted = f"{len(table)} types: {verdicts['all']} pass for every axis that they have"
    return f"{counted}, {verdicts['some']} for some, {refused}."


def markdown(table: Sequence[SupportRow]) -> str:
    """Return the rows as a Markdown table.

    By how much logits differ is left out: in mixtures and other classes that choose, rounding decides it.
    """
    lines = ["| Type | Cut along | Not cut, and why |", "| --- | --- | --- |"]
    for row in table:
        cut = ", ".join(row.cut) or "–"
        why = "; ".join(f"{axis}: {reason}" for axis, reason in (row.refused | row.tied).items())
        cells = (f"`{row.model_type}`", cut, _AMOUNT.sub("", row.reason or why or "–"))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def log_progress(row: SupportRow) -> None:
    """Print a row's result to standard error."""
    print(f"{row.model_type}: {', '.join(row.cut) or row.reason}", file=sys.stderr, flush=True)


_AMOUNT = re.compile(r"(?<=masked teacher's) by [0-9][0-9.e+-]*")
_DESCRIPTION = "Try types of causal language models and print along which axes each can be cut."
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
    """Return the content of ``SUPPORT.md``."""
    return _HEADING.format(version=transformers.__version__, summary=counts) + "\n" + table


def main(arguments: Sequence[str] | None = None) -> int:
    """Test the given types, or all; return 1 if something fails for which a run refuses no teacher."""
    parser = argparse.ArgumentParser(prog="python -m space.families", description=_DESCRIPTION)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} of all types")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.types if name not in TYPES]
    if unknown:
        parser.error(f"transformers has no causal language model of type {unknown[0]!r}")
    if options.write and options.types:
        parser.error("the table is written of all types; leave the names out, or --write")
    table = support_rows(options.types or TYPES, report=log_progress)
    print(markdown(table), summary(table), sep="\n")
    if options.write:
        TABLE.write_text(support_page(markdown(table), summary(table)), encoding="utf-8")
    late = [row.model_type for row in table if row.late]
    if late:
        print(f"Not refused at run time in the same words: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0
