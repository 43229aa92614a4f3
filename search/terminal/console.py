"""Progress of a run for the user: its stage, its trials, the best candidate so far and the time left.

The time of a piece of work, such as one training, is modelled as tokens times a pace, plus an overhead for
pruning, measuring and validating the student. The pace is the median over steps; the overhead is the rest of
the time of completed pieces. So short trainings predict the time of long ones.

On a terminal one line at the bottom is kept up to date; elsewhere progress is logged as plain lines.
Everything goes to stderr; stdout is for the result.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

import optuna
import rich.console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

#: Assumed time per token of each kind until it is timed, relative to a forward pass of the teacher.
_RELATIVE = {"correct": 3.0, "forward": 1.0, "score": 1.0, "distil": 2.0, "retrain": 2.0, "benchmark": 1.0}
#: The pace is the median over this many of the latest steps.
_STEPS = 256


@dataclass
class _CompletedPieces:
    """Totals over pieces of work that this process did completely."""

    pieces: int = 0
    tokens: int = 0
    seconds: float = 0.0


class TimeForecast:
    """Predicts the time left from tokens of ``correct``, ``forward``, ``score``, ``distil`` and ``retrain``.

    For ``benchmark`` it counts tasks, since their tokens are not known in advance.

    Args:
        planned: tokens by kind of work.
        pieces: by kind, the number of pieces, such as trainings, that make up the tokens.
    """

    def __init__(self, planned: Mapping[str, int], pieces: Mapping[str, int] | None = None) -> None:
        self.planned, self.pieces = Counter(planned), Counter(pieces or {})
        self.extra: Counter[str] = Counter()
        """Tokens beyond the plan, by kind."""
        self.extra_pieces: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.timed: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.workers = 1
        """Number of workers that share the remaining work."""
        self._pieces_done: Counter[str] = Counter()
        self._share_done: dict[str, float] = {}
        self._completed: dict[str, _CompletedPieces] = defaultdict(_CompletedPieces)
        self._steps: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_STEPS))

    def skip(self, kind: str, tokens: int, pieces: int = 0) -> None:
        """Count work that took no time here because an earlier process or another worker did it."""
        self.done[kind] += tokens
        self._pieces_done[kind] += pieces

    def spend(self, kind: str, tokens: int, seconds: float) -> None:
        """Count work that was done, and its time."""
        self.done[kind] += tokens
        self.timed[kind] += tokens
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def step(self, kind: str, tokens: int, seconds: float, share: float) -> None:
        """Record a step other than the first of a piece of work, of which ``share`` is now done."""
        self._steps[kind].append(seconds / tokens)
        self._share_done[kind] = share

    def finish(self, kind: str, tokens: int, seconds: float, whole: bool) -> None:
        """Record the end of a piece; its time predicts that of others only if it was done as a ``whole``."""
        self._pieces_done[kind] += 1
        self._share_done.pop(kind, None)
        if whole:
            found = self._completed[kind]
            found.pieces, found.tokens = found.pieces + 1, found.tokens + tokens
            found.seconds += seconds

    def pace(self, kind: str) -> float | None:
        """Return seconds per token of a kind, estimated from other kinds until timed; None at the start."""
        paces = {k: self._own_pace(k) for k in self.seconds if self.timed[k]}
        if kind in paces:
            return paces[kind]
        similar = [k for k in paces if _RELATIVE[k] == _RELATIVE[kind]] or list(paces)
        guesses = [paces[k] / _RELATIVE[k] * _RELATIVE[kind] for k in similar]
        return sum(guesses) / len(guesses) if guesses else None

    def overhead(self, kind: str) -> float:
        """Return the overhead of a piece in seconds, from a similar kind until one of this kind is done."""
        similar = [kind, *(k for k in _RELATIVE if _RELATIVE[k] == _RELATIVE[kind] and self.pieces[k])]
        known = next((k for k in similar if self._completed[k].pieces), None)
        if known is None:
            return 0.0
        whole = self._completed[known]
        return max(0.0, (whole.seconds - whole.tokens * self._own_pace(known)) / whole.pieces)

    def left(self) -> float | None:
        """Return the seconds left; None before anything is planned or timed."""
        if not self.planned:
            return None
        total = 0.0
        for kind, planned in self.planned.items():
            tokens_left = max(0, planned + self.extra[kind] - self.done[kind])
            pace = self.pace(kind)
            if tokens_left and pace is None:
                return None
            total += tokens_left * (pace or 0.0)
            if tokens_left and self.pieces[kind]:
                total += self._pieces_left(kind) * self.overhead(kind)
        return total / self.workers

    def _pieces_left(self, kind: str) -> float:
        planned = self.pieces[kind] + self.extra_pieces[kind]
        return max(0.0, planned - self._pieces_done[kind] - self._share_done.get(kind, 0.0))

    def _own_pace(self, kind: str) -> float:
        if self._steps[kind]:
            return median(self._steps[kind])
        return self.seconds[kind] / self.timed[kind]


logger = logging.getLogger("slimsearch")
_LOG_EVERY_SECONDS = 10.0


def clock(seconds: float | None) -> str:
    """Format a time left: ``45 s``, ``2 min 30 s``, ``2.5 h``."""
    if seconds is None:
        return "?"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 595:
        minutes, rest = divmod(round(seconds / 10), 6)
        return f"{minutes} min {10 * rest} s" if rest else f"{minutes} min"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Console:
    """Shows and logs the progress of one run.

    Args:
        quiet: show only warnings.
        verbose: show debug messages and those of libraries too.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.stderr = rich.console.Console(stderr=True)
        self.live = self.stderr.is_terminal and not quiet
        level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        self._log_to_stderr(level, verbose)
        self.forecast = TimeForecast({})
        self.best: dict[int, tuple[float, str]] = {}
        self.stage_seconds: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._logged_at = time.monotonic()

    def _log_to_stderr(self, level: int, verbose: bool) -> None:
        handler: logging.Handler
        if self.live:
            handler = RichHandler(console=self.stderr, show_path=False, markup=False, log_time_format="[%X]")
            handler.setFormatter(logging.Formatter("%(message)s"))
        else:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.WARNING)
        ours = ("slimsearch", "search", "evaluators", "space")
        for name in (*ours, *(("optuna", "transformers", "accelerate", "datasets") if verbose else ())):
            logging.getLogger(name).handlers = [handler]
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).propagate = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show a live progress line within the context, if stderr is a terminal."""
        if not self.live:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.stderr, transient=True) as self._progress:
            self._task = self._progress.add_task("starting", total=None, left="")
            yield
        self._progress = None

    def say(self, text: str) -> None:
        """Log a line."""
        logger.info("%s", text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the run."""
        began = time.monotonic()
        self._show(name, None, None)
        try:
            yield
        finally:
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.monotonic() - began

    @contextmanager
    def work(self, text: str, kind: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show and time work of ``total`` tokens; yields a function to call with the tokens of each step."""
        began = last = time.monotonic()
        done = 0
        self._show(text, 0, total)

        def advance(tokens: int) -> None:
            nonlocal done, last
            now = time.monotonic()
            self.forecast.spend(kind, tokens, now - last)
            if done and tokens > 0 and self.forecast.pieces[kind]:
                self.forecast.step(kind, tokens, now - last, (done + tokens) / total)
            done, last = done + tokens, now
            self._show(text, done, total)

        yield advance
        now = time.monotonic()
        if done:  # the rest of work that ended early counts as done, without affecting the pace
            self.forecast.skip(kind, total - done)
        self.forecast.spend(kind, 0 if done else total, now - last)
        self.forecast.finish(kind, total, now - began, whole=done in (0, total))

    def trial_done(
        self, rung: int, label: str, loss: float, accuracies: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Log a trial with its accuracies by task, and remember the best candidate of each rung."""
        if rung not in self.best or loss < self.best[rung][0]:
            self.best[rung] = (loss, label)
        logger.info(
            "rung %d  %-28s loss %.4f%s   best %.4f %s   %s left",
            rung,
            label,
            loss,
            "".join(f"  {task} {share:.1%}" for task, share in accuracies.items()),
            *self.best[rung],
            clock(self.forecast.left()),
        )

    def _show(self, text: str, done: int | None, total: int | None) -> None:
        best = f"  best {self.best[max(self.best)][0]:.4f} at rung {max(self.best)}" if self.best else ""
        left = f"{clock(self.forecast.left())} left"
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, description=text + best, completed=done or 0, total=total, left=left
            )
        elif time.monotonic() - self._logged_at > _LOG_EVERY_SECONDS and total:
            self._logged_at = time.monotonic()
            logger.info("%s  %.0f%%%s   %s", text, min(100, 100 * (done or 0) / total), best, left)
