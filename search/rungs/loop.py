"""The search itself: ask, evaluate, tell, promote, until every rung is full.

Any number of workers does this at once. What is done next is decided by one at a time; evaluations run side
by side, and nobody waits for anybody until nothing is left to begin.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from search.settings.config import RunConfig
from search.settings.objectives import UNITS, bounds_in_words, excess_in_words, excess_over, measured_bounds
from search.storage.storage import open_storage, open_study
from search.storage.workers import Workers
from search.terminal.command import LostProcessError
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.enumeration.search_space import SearchSpace

logger = logging.getLogger(__name__)
#: How often a worker without work looks whether there is some.
_POLL_SECONDS = 0.5


class Evaluator(Protocol):
    """Judges candidates: the seam between searching and judging.

    The search knows no model. An evaluator distils and measures in a run, and looks up a table or a formula
    in studies and tests.
    """

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """Score a candidate at a rung.

        Raises:
            CandidateError: with the reason; the search records it and goes on without the candidate.
            LostProcessError: this worker has to end. The candidate counts as one in which a worker died.
        """

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Let go of what no candidate needs any more; called when a trial was told.

        Args:
            rungs: all, rung 0 first.
            candidates: how many each rung takes.
        """


@dataclass(frozen=True)
class SearchTask:
    """What is searched."""

    config: RunConfig
    space: SearchSpace
    by_hand: Mapping[str, Architecture]
    """Tried before all others, by their origin."""
    tries: Sequence[Architecture] = ()
    """What the user wants to be tried as well."""

    @property
    def candidates(self) -> list[int]:
        """How many each rung takes, rung 0 first."""
        most = len(self.space)
        return [min(number, most) for number in (self.config.trials, *self.config.rung_candidates)]

    def effort(self, rung: int) -> tuple[str, int]:
        """The kind of work at a rung, and its tokens."""
        if rung:
            return "distil", self.config.rung_tokens[rung - 1]
        return "score", self.config.validation_blocks * self.config.block


def open_rungs(
    config: RunConfig, space: SearchSpace, directory: Path, workers: Workers | None = None
) -> list[Rung]:
    """The rungs' studies, ``NAME/r0`` and so on, created if they are not there."""
    return rungs_in(open_storage(config.storage, directory), config, space, workers)


def rungs_in(
    storage: BaseStorage, config: RunConfig, space: SearchSpace, workers: Workers | None = None
) -> list[Rung]:
    """The rungs' studies in a storage that is open."""
    names = [f"{config.name}/r{index}" for index in range(config.rungs)]
    bounds = config.upper_bounds
    searched = f"{len(space)} architectures within {space.budget}"
    searched += f", {bounds_in_words(bounds)}" if bounds else ""
    claims = Claims(workers or Workers())
    studies = [open_study(storage, name, config.objectives, UNITS, searched) for name in names]
    return [
        Rung(index, study, space, config.objectives, claims, measured_bounds(bounds))
        for index, study in enumerate(studies)
    ]


class Search:
    """Fills the rungs of a run, from wherever other workers or an earlier process left them."""

    def __init__(
        self,
        task: SearchTask,
        rungs: list[Rung],
        evaluator: Evaluator,
        console: Console,
        workers: Workers | None = None,
    ) -> None:
        self.task, self.rungs, self.evaluator, self.console = task, rungs, evaluator, console
        self.workers = workers or Workers()
        config = task.config
        self.bracket = Bracket(
            rungs, task.candidates, config.objectives, config.seed, config.rung_tokens, config.reserve_tokens
        )
        self._told: Counter[int] = Counter()

    def run(self) -> None:
        """Work until no rung wants another candidate and nobody is at work on one."""
        with self._turn():
            for origin, architecture in self.task.by_hand.items():
                self.rungs[0].enter(architecture, origin)
            for architecture in self.task.tries:
                self._try(architecture)
        while True:
            with self._turn():
                self._skip_what_others_did()
                job = self._next()
                over = job is None and not any(rung.has_unfinished() for rung in self.rungs)
            if job is not None:
                self._work(*job)
            elif over:
                return
            else:
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the one worker that decides."""
        with self.workers.turn("search"), ExitStack() as stack:
            for rung in self.rungs:
                stack.enter_context(rung.steady())
            yield

    def _try(self, architecture: Architecture) -> None:
        """Put what the user asked for in the queue; what the search had left behind at rung 0 goes up."""
        known = {record.architecture: record for record in self.rungs[0].feasible()}
        if architecture not in known:
            self.rungs[0].enter(architecture, BY_HAND)
        elif len(self.rungs) > 1 and known[architecture].origin == SEARCH:
            self.rungs[1].enter(architecture, BY_HAND)

    def _next(self) -> tuple[Rung, Trial, Architecture] | None:
        """The next trial to work on, claimed for this worker; None if there is none at the moment."""
        while (found := self._found()) is not None:
            rung, trial = found
            architecture = rung.begin(trial, self._sampler(rung, trial.number))
            if not rung.settled(trial):
                return rung, trial, architecture
        return None

    def _found(self) -> tuple[Rung, Trial] | None:
        for rung in reversed(self.rungs):
            if (trial := rung.unfinished()) is not None:
                return rung, trial
        if (promoted := self.bracket.promotion()) is not None:
            index, record = promoted
            self.rungs[index].enter(record.architecture, record.origin)
            return self._found()
        if self.bracket.wants_more():
            rung = self.rungs[0]
            return rung, rung.ask(self._sampler(rung, rung.count()))
        return None

    def _sampler(self, rung: Rung, number: int) -> SpaceSampler:
        """A sampler for one trial: the seed follows from the trial's number, so a resume goes on alike."""
        config = self.task.config
        informed = [other for other in self.rungs[1:] if len(other.complete()) >= START_UP]
        alone = KINDS[config.sampler].from_rung_0
        guide = informed[-1].study if informed and not alone else None
        if guide is not None and rung.bounds:
            guide = with_infeasible(guide, self.rungs[0].study)
        return SpaceSampler(config.sampler, self.task.space, guide, config.seed, number)

    def _work(self, rung: Rung, trial: Trial, architecture: Architecture) -> None:
        text = f"rung {rung.index}, trial {trial.number}: {architecture.label}"
        self._told[rung.index] += 1
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
                with suppress(Exception):  # a storage that is out of reach has its own message
                    rung.release(trial)
                raise
        rung.tell(trial, evaluation)
        with self._turn():
            self.evaluator.tidy(self.rungs, self.bracket.quotas())
        if excess := excess_over(evaluation.values, rung.bounds):
            self.console.say(f"rung {rung.index}  {architecture.label}: {excess_in_words(excess)}")
        else:
            self.console.trial_done(rung.index, architecture.label, evaluation.values["loss"])

    def _skip_what_others_did(self) -> None:
        """Let the forecast of the time left know of trials that this worker did not do."""
        for rung in self.rungs:
            for _ in range(len(rung.records()) - self._told[rung.index]):
                self.console.forecast.skip(*self.task.effort(rung.index), pieces=1)
                self._told[rung.index] += 1
        planned, quotas = self.bracket.candidates, self.bracket.quotas()
        forecast, tokens = self.console.forecast, self.task.config.rung_tokens
        forecast.extra["distil"] = tokens_spent(tokens, quotas[1:]) - tokens_spent(tokens, planned[1:])
        forecast.extra_pieces["distil"] = sum(quotas[1:]) - sum(planned[1:])
        forecast.workers = 1 + self.workers.others()
