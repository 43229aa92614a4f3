"""The search itself: ask, evaluate, tell, promote, until every rung is full."""

from __future__ import annotations

import logging
from pathlib import Path

from optuna.trial import Trial

from search.bracket import Bracket
from search.branches import tidy
from search.config import RunConfig
from search.console import Console
from search.objectives import UNITS
from search.rung import Rung
from search.sampler import START_UP, SpaceSampler, make_sampler
from search.storage import open_storage, open_study
from search.trial import CandidateError, evaluate
from search.workbench import Workbench
from space.baselines import baselines
from space.search_space import SearchSpace

logger = logging.getLogger(__name__)


def open_rungs(config: RunConfig, space: SearchSpace, directory: Path) -> list[Rung]:
    """The rungs' studies, ``NAME/r0`` and so on, created if they are not there."""
    storage = open_storage(config.storage, directory)
    names = [f"{config.name}/r{index}" for index in range(config.rungs)]
    searched = f"{len(space)} architectures within {space.budget}"
    studies = [open_study(storage, name, config.objectives, UNITS, searched) for name in names]
    return [Rung(index, study, space, config.objectives) for index, study in enumerate(studies)]


class Search:
    """Fills the rungs of a run, from wherever an earlier process left them."""

    def __init__(self, bench: Workbench, rungs: list[Rung], console: Console) -> None:
        self.bench, self.rungs, self.console = bench, rungs, console
        config = bench.config
        architectures = len(bench.space)
        candidates = [min(n, architectures) for n in (config.trials, *config.rung_candidates)]
        self.bracket = Bracket(rungs, candidates, config.objectives, config.seed)

    def run(self) -> None:
        """Work until no rung wants another candidate."""
        for rung in self.rungs:
            for _ in rung.records():
                self.console.forecast.skip(*self._effort(rung.index))
        for origin, architecture in baselines(self.bench.space, self.bench.axis_map.teacher).items():
            self.rungs[0].enter(architecture, origin)
        while (job := self._next()) is not None:
            self._work(*job)

    def _next(self) -> tuple[Rung, Trial] | None:
        for rung in reversed(self.rungs):
            if (trial := rung.unfinished()) is not None:
                return rung, trial
        if (promoted := self.bracket.promotion()) is not None:
            index, record = promoted
            self.rungs[index].enter(record.architecture, record.origin)
            return self._next()
        if self.bracket.wants_more():
            rung = self.rungs[0]
            return rung, rung.ask(self._sampler(rung, rung.count()))
        return None

    def _sampler(self, rung: Rung, number: int) -> SpaceSampler:
        """A sampler for one trial: the seed follows from the trial's number, so a resume goes on alike."""
        config = self.bench.config
        informed = [other for other in self.rungs[1:] if len(other.complete()) >= START_UP]
        guide = informed[-1].study if informed and config.sampler != "nsga2" else None
        seed = (config.seed * 100_003 + number) % 2**32  # more than that NumPy's old generator refuses
        return SpaceSampler(make_sampler(config.sampler, seed), self.bench.space, guide, config.seed)

    def _effort(self, rung: int) -> tuple[str, int]:
        """The kind of work at a rung, and its tokens."""
        if rung:
            return "distil", self.bench.config.rung_tokens[rung - 1]
        return "score", self.bench.config.validation_blocks * self.bench.config.block

    def _work(self, rung: Rung, trial: Trial) -> None:
        sampler = self._sampler(rung, trial.number)
        architecture = rung.begin(trial, sampler)
        text = f"rung {rung.index}, trial {trial.number}: {architecture.label}"
        with self.console.work(text, *self._effort(rung.index)) as advance:
            try:
                evaluation = evaluate(self.bench, architecture, rung.index, advance)
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
        rung.tell(trial, evaluation)
        tidy(self.bench, self.rungs, self.bracket.candidates)
        self.console.told(rung.index, architecture.label, evaluation.values["loss"])
