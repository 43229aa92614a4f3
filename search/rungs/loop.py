"""The search loop: ask, evaluate, tell, promote, until every rung is full.

Any number of workers run it at once. One at a time decides what to do next, under a lock; evaluations run in
parallel. A worker waits for others only when there is nothing left to begin.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optuna.storages import BaseStorage
from optuna.trial import Trial

from evaluators.distillation.training import Advance
from search.rungs.bracket import Bracket
from search.rungs.claims import Claims, time_limit
from search.rungs.evaluation import BY_HAND, SEARCH, CandidateError, Evaluation
from search.rungs.rung import Rung
from search.rungs.sampler import KINDS, START_UP, SpaceSampler, with_infeasible
from search.settings.bracket_plan import tokens_spent
from search.settings.config import NESTED, RunConfig
from search.settings.objectives import bounds_in_words, excess_in_words, excess_over, measured_bounds
from search.settings.task_objectives import unit_of
from search.storage.storage import open_storage, open_study
from search.storage.workers import Workers
from search.terminal.command import LostProcessError
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.enumeration.search_space import SearchSpace

logger = logging.getLogger(__name__)
#: How often an idle worker checks for work.
_POLL_SECONDS = 0.5


class Evaluator(Protocol):
    """Evaluates candidates: the interface between the search and models.

    The search itself knows no model. In a run the evaluator distils and measures; in studies and tests it
    looks up a table or computes a formula.
    """

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """Evaluate a candidate at a rung.

        Raises:
            CandidateError: with the reason; the search records it and goes on without the candidate.
            LostProcessError: this worker has to end; it counts as a worker that crashed in the candidate.
        """

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Delete stored data that no candidate needs any more; called after each finished trial.

        Args:
            rungs: all rungs, rung 0 first.
            candidates: how many candidates each rung takes.
        """


@dataclass(frozen=True)
class SearchTask:
    """What to search: the configuration, the space, and architectures that have to be tried."""

    config: RunConfig
    space: SearchSpace
    by_hand: Mapping[str, Architecture]
    """Hand-made baselines by name, tried before all others."""
    tries: Sequence[Architecture] = ()
    """Architectures that the user asked for."""

    @property
    def candidates(self) -> list[int]:
        """How many candidates each rung takes, rung 0 first."""
        most = len(self.space)
        return [min(number, most) for number in (self.config.trials, *self.config.rung_candidates)]

    def effort(self, rung: int) -> tuple[str, int]:
        """Return the kind of work at a rung, and its tokens per candidate."""
        if rung and self.config.search != NESTED:
            return "distil", self.config.rung_tokens[rung - 1]
        return "score", self.config.validation_blocks * self.config.block


def open_rungs(
    config: RunConfig, space: SearchSpace, directory: Path, workers: Workers | None = None
) -> list[Rung]:
    """Open the rungs' studies ``NAME/r0``, ``NAME/r1``, …; create those that do not exist."""
    return rungs_in(open_storage(config.storage, directory), config, space, workers)


def rungs_in(
    storage: BaseStorage, config: RunConfig, space: SearchSpace, workers: Workers | None = None
) -> list[Rung]:
    """Open or create the rungs' studies in an open storage."""
    names = [f"{config.name}/r{index}" for index in range(config.rungs)]
    bounds = config.upper_bounds
    searched = f"{len(space)} architectures within {space.budget}"
    searched += f", {bounds_in_words(bounds)}" if bounds else ""
    claims = Claims(workers or Workers())
    units = {name: unit_of(name) for name in config.objectives}
    studies = [open_study(storage, name, config.objectives, units, searched) for name in names]
    return [
        Rung(index, study, space, config.objectives, claims, measured_bounds(bounds))
        for index, study in enumerate(studies)
    ]


class Search:
    """Fills the rungs of a run, and continues where other workers or an earlier process left off."""

    def __init__(
        self,
        task: SearchTask,
        rungs: list[Rung],
        evaluator: Evaluator,
        console: Console,
        workers: Workers | None = None,
        prepare: Callable[[Sequence[Rung], int], None] = lambda rungs, index: None,
    ) -> None:
        """Begin or go on.

        Args:
            task: what to search.
            rungs: open studies, rung 0 first.
            evaluator: evaluates candidates.
            console: for progress.
            workers: this worker among others.
            prepare: called with all rungs and the index of the one whose candidates come next; in a nested
                search all of them have entered it.
        """
        self.prepare = prepare
        self.task, self.rungs, self.evaluator, self.console = task, rungs, evaluator, console
        self.workers = workers or Workers()
        config = task.config
        self.bracket = Bracket(
            rungs,
            task.candidates,
            config.objectives,
            config.seed,
            config.rung_tokens,
            config.reserve_tokens,
            together=config.search == NESTED,
        )
        self._reported: Counter[int] = Counter()

    def run(self) -> None:
        """Work until no rung wants another candidate and no trial is unfinished."""
        with self._deciding():
            for origin, architecture in self.task.by_hand.items():
                self.rungs[0].enter(architecture, origin)
            for architecture in self.task.tries:
                self._queue_requested(architecture)
        while True:
            with self._deciding():
                self._count_others_trials()
                self._promote_together()
                due = self._due()
            self.prepare(self.rungs, due)
            with self._deciding():
                if self._due() != due:  # other workers have completed the rung meanwhile
                    continue
                job = self._next()
                done = job is None and not any(rung.has_unfinished() for rung in self.rungs)
                done = done and self.bracket.promotion() is None
            if job is not None:
                self._work(*job)
            elif done:
                return
            else:
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Within the context, hold the lock under which one worker at a time decides."""
        with self.workers.turn("search"), ExitStack() as stack:
            for rung in self.rungs:
                stack.enter_context(rung.cached_trials())
            yield

    def _queue_requested(self, architecture: Architecture) -> None:
        """Queue an architecture that the user asked for; at rung 1 if the search has tried it at rung 0."""
        known = {record.architecture: record for record in self.rungs[0].feasible()}
        if architecture not in known:
            self.rungs[0].enter(architecture, BY_HAND)
        elif len(self.rungs) > 1 and known[architecture].origin == SEARCH:
            self.rungs[1].enter(architecture, BY_HAND)

    def _promote_together(self) -> None:
        """In a nested search, let all candidates that are promoted enter at once: they train together."""
        while self.bracket.together and (promoted := self.bracket.promotion()) is not None:
            index, record = promoted
            self.rungs[index].enter(record.architecture, record.origin)

    def _due(self) -> int:
        """Return the rung whose candidates come next in a nested search, where all take the same; else 0."""
        if not self.bracket.together:
            return 0
        return max((rung.index for rung in self.rungs if rung.has_unfinished()), default=0)

    def _next(self) -> tuple[Rung, Trial, Architecture] | None:
        """Claim and return the next trial to work on; None if there is none at the moment."""
        while (found := self._next_unclaimed()) is not None:
            rung, trial = found
            architecture = rung.begin(trial, self._sampler(rung, trial.number))
            if not rung.finish_without_evaluation(trial):
                return rung, trial, architecture
        return None

    def _next_unclaimed(self) -> tuple[Rung, Trial] | None:
        for rung in reversed(self.rungs):
            if (trial := rung.unfinished()) is not None:
                return rung, trial
        if not self.bracket.together and (promoted := self.bracket.promotion()) is not None:
            index, record = promoted
            self.rungs[index].enter(record.architecture, record.origin)
            return self._next_unclaimed()
        if self.bracket.wants_more():
            rung = self.rungs[0]
            return rung, rung.ask(self._sampler(rung, rung.count()))
        return None

    def _sampler(self, rung: Rung, number: int) -> SpaceSampler:
        """Return the sampler for a trial, seeded by the trial's number so that resuming is deterministic."""
        config = self.task.config
        informed = [other for other in self.rungs[1:] if len(other.complete()) >= START_UP]
        only_rung_0 = KINDS[config.sampler].from_rung_0
        guide = informed[-1].study if informed and not only_rung_0 else None
        if guide is not None and rung.bounds:
            guide = with_infeasible(guide, self.rungs[0].study)
        return SpaceSampler(config.sampler, self.task.space, guide, config.seed, number)

    def _work(self, rung: Rung, trial: Trial, architecture: Architecture) -> None:
        text = f"rung {rung.index}, trial {trial.number}: {architecture.label}"
        self._reported[rung.index] += 1
        with self.console.work(text, *self.task.effort(rung.index)) as advance:
            try:
                with time_limit(rung.limit_seconds(trial)):
                    evaluation = self.evaluator.evaluate(architecture, rung.index, advance)
            except CandidateError as failure:
                rung.tell_failure(trial, str(failure))
                logger.warning(
                    "trial %d of rung %d, %s, failed: %s",
                    trial.number,
                    rung.index,
                    architecture.label,
                    failure,
                )
                return
            except LostProcessError:
                raise
            except BaseException:
                with suppress(Exception):  # an unreachable storage reports its own error
                    rung.release(trial)
                raise
        rung.tell(trial, evaluation)
        with self._deciding():
            self.evaluator.tidy(self.rungs, self.bracket.quotas())
        if excess := excess_over(evaluation.values, rung.bounds):
            self.console.say(f"rung {rung.index}  {architecture.label}: {excess_in_words(excess)}")
        else:
            loss, accuracies = evaluation.values["loss"], evaluation.accuracies
            self.console.trial_done(rung.index, architecture.label, loss, accuracies)

    def _count_others_trials(self) -> None:
        """Update the forecast of the time left with the trials that other workers did."""
        for rung in self.rungs:
            for _ in range(len(rung.records()) - self._reported[rung.index]):
                self.console.forecast.skip(*self.task.effort(rung.index), pieces=1)
                self._reported[rung.index] += 1
        planned, quotas = self.bracket.candidates, self.bracket.quotas()
        forecast, tokens = self.console.forecast, self.task.config.rung_tokens
        if not self.bracket.together:
            forecast.extra["distil"] = tokens_spent(tokens, quotas[1:]) - tokens_spent(tokens, planned[1:])
            forecast.extra_pieces["distil"] = sum(quotas[1:]) - sum(planned[1:])
        forecast.workers = 1 + self.workers.others()
