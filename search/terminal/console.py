"""What a user sees while a run works: which stage, which trial, the best so far, the time left.

On a terminal one line is kept up to date at the bottom; elsewhere the same is logged as plain lines.
Everything goes to stderr; stdout is for the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import rich.console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from search.terminal.forecast import Forecast

logger = logging.getLogger("slimsearch")
_LOG_EVERY_SECONDS = 10.0


def clock(seconds: float | None) -> str:
    """A time left as people say it."""
    if seconds is None:
        return "?"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 595:
        minutes, rest = divmod(round(seconds / 10), 6)
        return f"{minutes} min {10 * rest} s" if rest else f"{minutes} min"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Console:
    """Progress of one run.

    Args:
        quiet: only warnings.
        verbose: library messages too.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.stderr = rich.console.Console(stderr=True)
        self.live = self.stderr.is_terminal and not quiet
        level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        self._log_to_stderr(level, verbose)
        self.forecast = Forecast({})
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
        """Show progress within the context."""
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
        """One line that stays."""
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
        """Show work of so many tokens; the caller is given what to call with the tokens of each step."""
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
        if done:  # what ended early is done too, but says nothing of the pace
            self.forecast.skip(kind, total - done)
        self.forecast.spend(kind, 0 if done else total, now - last)
        self.forecast.finish(kind, total, now - began, whole=done in (0, total))

    def told(self, rung: int, label: str, loss: float) -> None:
        """Keep the best candidate of each rung."""
        if rung not in self.best or loss < self.best[rung][0]:
            self.best[rung] = (loss, label)
        logger.info(
            "rung %d  %-28s loss %.4f   best %.4f %s   %s left",
            rung,
            label,
            loss,
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
