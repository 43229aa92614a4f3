"""What the rungs foretold is gathered from their records, and scored on the models that were kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from search.foresight.foresight import forecast, foresight
from search.rungs.evaluation import RANDOM_WEIGHTS, Evaluation, FinishedTrial, Retrained
from search.rungs.rung import Rung
from tests.search.synthetic import demo_space

SPACE = demo_space()
CANDIDATES = SPACE.architectures[:4]
LABELS = [one.label for one in CANDIDATES]
#: By rung, the loss of each candidate that is on it.
LOSSES = [[4.0, 4.2, 4.4, 4.6], [3.2, 3.0, 3.1], [2.8, 2.7]]
TOKENS, RETRAINING, TEACHER = (0, 1_000, 4_000), 16_000, 2.0


def rungs() -> list[Rung]:
    """Rungs that hold finished trials and no study."""

    def record(rung: int, number: int, loss: float) -> FinishedTrial:
        evaluation = Evaluation({"loss": loss}, TOKENS[rung])
        return FinishedTrial(rung, number, CANDIDATES[number], "search", evaluation, None)

    def rung(index: int, losses: list[float]) -> Rung:
        records = [record(index, number, loss) for number, loss in enumerate(losses)]
        return cast(Rung, SimpleNamespace(index=index, complete=lambda: records))

    return [rung(index, losses) for index, losses in enumerate(LOSSES)]


def retrained(number: int, loss: float | None, path: str | None, origin: str = "search") -> Retrained:
    """The outcome of a retraining."""
    return Retrained(CANDIDATES[number], origin, loss, None, RETRAINING, 1.0, [], path)


OUTCOMES = [
    retrained(0, 2.6, "models/01"),
    retrained(1, 99.0, "models/02"),
    retrained(2, None, None),
    retrained(0, 5.0, None, RANDOM_WEIGHTS),
    replace(retrained(3, 7.0, "models/03"), short=True),
]
TOLD = foresight(rungs(), SPACE, OUTCOMES, RETRAINING, TEACHER)


def test_forecasts_are_those_of_the_rungs_of_each_candidate() -> None:
    curves = {
        label: [(TOKENS[rung], losses[place]) for rung, losses in enumerate(LOSSES) if place < len(losses)]
        for place, label in enumerate(LABELS)
    }
    wanted = forecast(curves, RETRAINING, TEACHER)
    found = TOLD["forecast"]["candidates"]
    assert [one["label"] for one in found] == LABELS
    assert [(one["loss"], one["low"], one["high"]) for one in found] == [
        (wanted[label].loss, wanted[label].low, wanted[label].high) for label in LABELS
    ]


def test_forecasts_are_scored_on_models_that_were_kept() -> None:
    told = TOLD["forecast"]
    assert [one["outcome"] for one in told["candidates"]] == [2.6, 99.0, None, None]
    assert (told["held"], told["outcomes"], told["tokens"]) == (1, 2, RETRAINING)
    errors = [abs(one["loss"] - one["outcome"]) for one in told["candidates"][:2]]
    assert told["absolute_error"] == pytest.approx(sum(errors) / 2)


def test_regrets_are_those_of_the_first_of_each_order() -> None:
    found = {(one["from"], one["to"]): one for one in TOLD["rank_correlation"]}
    assert found["rung 0", "rung 1"]["regret"] == pytest.approx(0.2)
    assert found["rung 1", "rung 2"]["regret"] == 0
    assert found["rung 1", "retraining"]["regret"] == pytest.approx(96.4)
    largest = max(range(3), key=lambda place: SPACE.parameters_of(CANDIDATES[place]))
    assert found["parameters", "rung 1"]["regret"] == pytest.approx(LOSSES[1][largest] - 3.0)
    assert [one["candidates"] for one in found.values()] == [4, 3, 2, 2, 3, 2, 2, 2, 2, 2]


def test_before_anything_ran_nothing_is_foretold() -> None:
    told = foresight([], SPACE, [], RETRAINING, TEACHER)
    assert told["forecast"]["candidates"] == []
    assert told["forecast"]["absolute_error"] is None
