"""The range test of the peak learning rate as a stage of a run: one student in each basis that is tried.

Every training is saved as it ends, so a run that was stopped repeats none, and other workers reuse them.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluators.distillation.rate_finding import EXPECTED_TRAININGS, RangeTest, find_rate
from evaluators.distillation.schedule import DivergenceError
from evaluators.distillation.training import Advance
from search.settings.rates import given_rate, tokens_each
from search.settings.resolved import Resolved
from search.settings.run_time import RUNG_VALIDATIONS
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from search.training.peak_rates import BY_RULE, PeakRates
from space.axes.architecture import Architecture
from space.enumeration.hand_made import UNIFORM, baselines
from space.enumeration.search_space import SearchSpace


@dataclass(frozen=True)
class StudentInTest:
    """The student of a range test, with its trainings so far."""

    label: str
    parameters: int
    test: RangeTest

    def as_dict(self) -> dict[str, Any]:
        """Return what ``rates.json`` has of it; the loss of a training that diverged is None."""
        test = self.test
        return {
            "label": self.label,
            "parameters": self.parameters,
            "rule": test.rule,
            "loss_before": _or_none(test.loss_before),
            "tokens": test.tokens,
            "losses": {str(exponent): _or_none(loss) for exponent, loss in test.losses.items()},
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> StudentInTest:
        """Read what ``as_dict`` returned."""
        losses = {int(exponent): _or_infinite(loss) for exponent, loss in saved["losses"].items()}
        test = RangeTest(saved["rule"], _or_infinite(saved["loss_before"]), saved["tokens"], losses)
        return cls(saved["label"], saved["parameters"], test)


def _or_none(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def load_tested(path: Path) -> dict[str, StudentInTest]:
    """Read the tested students of a run, by basis; none without a file."""
    saved = json.loads(path.read_text()) if path.exists() else {}
    return {basis: StudentInTest.from_dict(one) for basis, one in saved.items()}


def student_to_test(space: SearchSpace, teacher: Architecture) -> Architecture:
    """Return the baseline that is shrunk evenly, or else the architecture in the middle of the space."""
    even = baselines(space, teacher).get(UNIFORM)
    return even or space.architectures[len(space) // 2]


@dataclass(frozen=True)
class RateStage:
    """Finds the peak learning rates of a run, in one basis after the other.

    Args:
        resolved: the run.
        directory: of the run.
        console: for progress.
    """

    resolved: Resolved
    directory: RunDirectory
    console: Console

    def begin(self) -> None:
        """Say how rates are set if they are not found, and count the tests that were finished before."""
        if not self.resolved.finding_tokens:
            self.console.say(f"learning rate: {self.resolved.rate_in_words}")
        for one in load_tested(self.directory.rates).values():
            if one.test.next is None:
                self._count_rest(one.test, here=0)

    def rated(self, ranked: Callable[[Resolved], RunContext]) -> Callable[[Resolved], RunContext]:
        """Return what makes the context in a basis, and then finds its rates.

        Args:
            ranked: makes the context, with the rule's rates.
        """
        self.begin()

        def context(variant: Resolved) -> RunContext:
            with self.console.stage("ranking"):
                found = ranked(variant)
            return replace(found, rates=self.rates(variant.basis.value, found))

        return context

    def rates(self, basis: str, context: RunContext) -> PeakRates:
        """Return the rates of a basis: found by a range test, of the rule, or given.

        Args:
            basis: name of the basis.
            context: context in this basis.
        """
        config, tested = context.config, load_tested(self.directory.rates)
        found_before = basis in tested and tested[basis].test.next is None
        if not self.resolved.finding_tokens or (self.directory.summary.exists() and not found_before):
            return PeakRates(given_rate(config))
        if not found_before:
            with self.console.stage("learning rate"):
                try:
                    tested[basis] = self._tested(basis, context, tested)
                except (RuntimeError, ValueError, MemoryError) as error:
                    why = str(error).partition("\n")[0]
                    self.console.say(
                        f"learning rates are the rule\u2019s: the student to find one by failed, {why}"
                    )
                    return BY_RULE
        return PeakRates(factor=tested[basis].test.found.factor)

    def _tested(self, basis: str, context: RunContext, tested: Mapping[str, StudentInTest]) -> StudentInTest:
        """Run the range test of a basis, or what is left of it."""
        architecture = student_to_test(context.space, context.axis_map.teacher)
        begun = tested.get(basis) or _begun(context, architecture)

        def keep(test: RangeTest) -> None:
            students = {**tested, basis: replace(begun, test=test)}
            text = json.dumps({name: one.as_dict() for name, one in students.items()}, indent=1)
            atomic_write(self.directory.rates, text)

        def loss_at(rate: float) -> float:
            text = f"finding the learning rate: {architecture.label} at {rate:.2g}"
            with self.console.work(text, "distil", begun.test.tokens) as advance:
                return loss_after(context, architecture, begun.test.tokens, rate, advance)

        test = find_rate(begun.test, loss_at, keep)
        self._count_rest(test, here=len(test.losses) - len(begun.test.losses))
        self.console.say(found_in_words(basis, test))
        return replace(begun, test=test)

    def _count_rest(self, test: RangeTest, here: int) -> None:
        """Tell the forecast of the trainings that were reckoned with and are not done here, or of more."""
        rest, forecast = EXPECTED_TRAININGS - here, self.console.forecast
        if rest >= 0:
            forecast.skip("distil", rest * test.tokens, pieces=rest)
        else:
            forecast.extra["distil"] -= rest * test.tokens
            forecast.extra_pieces["distil"] -= rest


def loss_after(
    context: RunContext, architecture: Architecture, tokens: int, rate: float, advance: Advance
) -> float:
    """Return the validation loss of a fresh student after a training; inf if it diverged.

    Raises:
        RuntimeError: the training failed for another reason, such as too little memory.
    """
    train = partial(context.train, tokens=tokens, targets=context.targets, advance=advance)
    with suppress(DivergenceError):
        try:
            done = train(context.extract(architecture), validations=RUNG_VALIDATIONS, rate=rate)
            return done.curve[-1][1]
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return math.inf


def found_in_words(basis: str, test: RangeTest) -> str:
    """Return what a range test found, for the terminal."""
    found = test.found
    rate = f"{found.factor:g} times the rule\u2019s in the {basis} basis"
    if not found.improves:
        return f"learning rate: {rate}, as a student was worse after every rate that was tried"
    losses = f"{test.losses[test.best or 0]:.4f} after {test.tokens:,} tokens"
    if 0 in test.losses and test.best != 0:
        at_rule = "diverged" if math.isinf(test.losses[0]) else f"{test.losses[0]:.4f}"
        losses += f" in place of {at_rule}"
    return f"learning rate: {rate}, loss {losses}"


def _begun(context: RunContext, architecture: Architecture) -> StudentInTest:
    student = context.extract(architecture)
    parameters, before = student.num_parameters(), context.loss(student)
    before = before if math.isfinite(before) else math.inf
    tokens = tokens_each(context.config)
    test = RangeTest(BY_RULE.of(context.config, parameters, tokens), before, tokens)
    return StudentInTest(architecture.label, parameters, test)


def rates_as_dict(context: RunContext, tested: Mapping[str, StudentInTest]) -> dict[str, Any]:
    """Return the peak rates of a run for its summary.

    Args:
        context: context in the basis of the run.
        tested: students of the range tests, by basis.
    """
    given = context.rates.given
    tests = [_test_as_dict(basis, one) for basis, one in tested.items()]
    return {"peak": given, "factor": context.rates.factor if given is None else None, "tests": tests}


def _test_as_dict(basis: str, one: StudentInTest) -> dict[str, Any]:
    found = one.test.found
    return {
        "basis": basis,
        "label": one.label,
        "parameters": one.parameters,
        "rule": one.test.rule,
        "factor": found.factor,
        "improves": found.improves,
        "loss_before": _or_none(found.loss_before),
        "tokens": one.test.tokens,
        "curve": [[rate, _or_none(loss)] for rate, loss in found.curve],
    }
