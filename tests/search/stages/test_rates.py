"""The peak learning rate is found once in each basis, and every training of the basis has it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evaluators.distillation import loop
from evaluators.distillation.loop import DistillationResult, DivergenceError
from evaluators.distillation.rate_finding import EXPECTED_TRAININGS
from evaluators.distillation.schedule import peak_rate
from search.settings import costs
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages import pipeline
from search.stages.preparation import basis_candidates
from search.stages.rates import RateStage, load_tested, student_to_test
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console, TimeForecast
from search.training.peak_rates import BY_RULE, PeakRates
from space.enumeration.hand_made import baselines
from tests.search.synthetic import demo_map, demo_space, run_config
from tests.small_search import SMALL, write_stories, write_teacher
from tests.warm_python import brief

BEFORE, PARAMETERS = 5.0, 10**6
#: Of the four steps of 256 tokens that each training has.
RULE = peak_rate(PARAMETERS, 4, 256)
Loss = Callable[[float], float]
"""Loss by the exponent of the rate."""


def around(best: float) -> Loss:
    return lambda exponent: 3 + 0.1 * (exponent - best) ** 2


class Trainings:
    """Stands for the students of a run; knows the loss of each training, and remembers their exponents."""

    def __init__(self, loss: Loss, rule: float = RULE) -> None:
        self.loss, self.rule, self.exponents = loss, rule, list[float]()

    def train(self, student: object, **how: Any) -> DistillationResult:
        exponent = math.log2(how["rate"] / self.rule)
        self.exponents.append(exponent)
        how["advance"](how["tokens"])
        return DistillationResult(how["tokens"], [(how["tokens"], self.loss(exponent))], 1.0)

    def context(self, **config: Any) -> RunContext:
        whole = {
            "config": run_config(rate="auto", **config),
            "space": demo_space(),
            "axis_map": demo_map(),
            "extract": lambda architecture: SimpleNamespace(num_parameters=lambda: PARAMETERS),
            "loss": lambda student: BEFORE,
            "train": self.train,
            "targets": None,
        }
        return cast(RunContext, SimpleNamespace(**whole))


class Heard(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def stage(folder: Path, tokens: int = 1, words: str = "") -> RateStage:
    resolved = cast(Resolved, SimpleNamespace(finding_tokens=tokens, rate_in_words=words))
    return RateStage(resolved, RunDirectory(folder), Heard())


def said(one: RateStage) -> list[str]:
    assert isinstance(one.console, Heard)
    return one.console.said


def test_each_basis_has_a_rate_of_its_own(tmp_path: Path) -> None:
    finding = stage(tmp_path)
    coordinate, weighted = Trainings(around(1)), Trainings(around(-2))
    assert finding.rates("coordinate", coordinate.context()) == PeakRates(factor=2.0)
    assert finding.rates("weighted", weighted.context()) == PeakRates(factor=0.25)
    assert coordinate.exponents == [0, -1, 1, 2]
    assert weighted.exponents == [0, -1, -2, -3]
    assert said(finding) == [
        "learning rate: 2 times the rule\u2019s in the coordinate basis, loss 3.0000 after 1,024 tokens in "
        "place of 3.1000",
        "learning rate: 0.25 times the rule\u2019s in the weighted basis, loss 3.0000 after 1,024 tokens in "
        "place of 3.4000",
    ]
    again = Trainings(around(0))
    assert finding.rates("weighted", again.context()).factor == 0.25
    assert again.exponents == [], "what is known is not tried again"


def test_under_wsd_trainings_of_all_lengths_have_the_same_rate(tmp_path: Path) -> None:
    trainings = Trainings(around(-1), peak_rate(PARAMETERS, None, 256))
    found = stage(tmp_path).rates("coordinate", trainings.context(schedule="wsd"))
    assert found == PeakRates(factor=0.5)
    assert trainings.exponents == [0, -1, -2]


def test_a_test_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def stopped(exponent: float) -> float:
        if exponent == -2:
            raise KeyboardInterrupt
        return math.nan if exponent == 0 else around(-2)(exponent)

    first, second = Trainings(stopped), Trainings(around(-2))
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path).rates("coordinate", first.context())
    finding = stage(tmp_path)
    assert finding.rates("coordinate", second.context()).factor == 0.25
    assert (first.exponents, second.exponents) == ([0, -1, -2], [-2, -3])
    [saved] = json.loads(finding.directory.rates.read_text()).values()
    assert saved["losses"]["0"] is None, "a training that diverged"
    assert load_tested(finding.directory.rates)["coordinate"].test.losses[0] == math.inf
    assert "in place of diverged" in said(finding)[0]


def test_a_divergence_is_a_loss_without_bound(tmp_path: Path) -> None:
    def diverges(exponent: float) -> float:
        if exponent >= 0:
            raise DivergenceError("the loss is nan at step 3")
        return around(-1)(exponent)

    assert stage(tmp_path).rates("coordinate", Trainings(diverges).context()).factor == 0.5


def test_where_no_rate_helps_it_is_said(tmp_path: Path) -> None:
    finding = stage(tmp_path)
    trainings = Trainings(lambda exponent: BEFORE + 2.0**exponent)
    assert finding.rates("weighted", trainings.context()).factor == 1 / 128
    assert trainings.exponents == [0, -1, -2, -3, -4, -5, -6]
    assert said(finding)[0].endswith("as a student was worse after every rate that was tried")


def test_a_student_that_cannot_be_trained_leaves_the_rule(tmp_path: Path) -> None:
    def fails(exponent: float) -> float:
        raise MemoryError("no room\nfor it")

    finding = stage(tmp_path)
    assert finding.rates("coordinate", Trainings(fails).context()) == BY_RULE
    assert said(finding) == ["learning rates are the rule\u2019s: the student to find one by failed, no room"]


def test_where_nothing_is_found_it_is_said_why(tmp_path: Path) -> None:
    finding, trainings = stage(tmp_path, tokens=0, words="its peak is the rule's"), Trainings(around(0))
    finding.begin()
    assert said(finding) == ["learning rate: its peak is the rule's"]
    context = trainings.context()
    assert finding.rates("coordinate", context) == BY_RULE
    given = cast(RunContext, SimpleNamespace(config=replace(context.config, rate="0.001")))
    assert finding.rates("coordinate", given) == PeakRates(given=0.001)
    assert trainings.exponents == []


@pytest.mark.parametrize("best", [-4, 0, 1])
def test_the_forecast_ends_with_nothing_left(best: int, tmp_path: Path) -> None:
    """Of more trainings than were reckoned with, of fewer, and of those of an earlier process."""
    planned = {"distil": EXPECTED_TRAININGS * 1024}
    for _ in range(2):
        finding = stage(tmp_path)
        forecast = finding.console.forecast = TimeForecast(planned, {"distil": EXPECTED_TRAININGS})
        finding.begin()
        finding.rates("coordinate", Trainings(around(best)).context())
        assert forecast.done["distil"] == forecast.planned["distil"] + forecast.extra["distil"]
        assert forecast._pieces_left("distil") == 0


def test_the_student_is_the_one_that_is_shrunk_evenly() -> None:
    space, teacher = demo_space(), demo_map().teacher
    assert student_to_test(space, teacher) == baselines(space, teacher)["uniform"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a teacher and its text."""
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("search.settings.costs._WORKLOADS", brief(costs._WORKLOADS))
    return tmp_path


@pytest.mark.slow
def test_every_training_of_a_run_has_the_rate_of_its_basis(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SMALL.replace("--basis coordinate", "--basis auto").replace("--rate rule", "--rate auto")
    words = words.replace("--retrain-tokens 2k", "--retrain-tokens 170k")
    flags = [*words.split(), "--budget", "60%", "--model", str(folder / "teacher")]
    flags += ["--data", str(folder / "stories.txt"), "--calibration-samples", "16"]
    run, directory = resolve(read_flags(flags)), RunDirectory(folder / "run")
    assert run.finding_tokens
    rates: list[float] = []
    distil = loop.distil

    def heard(student: Any, targets: Any, schedule: Any, *others: Any, **more: Any) -> DistillationResult:
        rule = peak_rate(student.num_parameters(), schedule.steps, schedule.tokens_per_step)
        rates.append(schedule.peak_rate / rule)
        return distil(student, targets, schedule, *others, **more)

    monkeypatch.setattr("search.training.training.distil", heard)
    summary = pipeline.run(run, directory, Console(quiet=True), "a command")
    tested = load_tested(directory.rates)
    assert list(tested) == ["coordinate", "weighted"]
    expected: list[float] = []
    tried = basis_candidates(run)
    for basis, one in tested.items():
        found = one.test.found
        expected += [2.0**exponent for exponent in one.test.losses]
        expected += [found.factor for candidate in tried if candidate.basis == basis]
    chosen = tested[summary["basis"]["name"]].test.found.factor
    assert rates[: len(expected)] == pytest.approx(expected)
    assert rates[len(expected) :] == pytest.approx([chosen] * (len(rates) - len(expected)))
    assert len(rates) > len(expected)
    again = pipeline.run(run, directory, Console(quiet=True), "a command")
    assert again["promoted"] == summary["promoted"]
