"""A search whose bound on latency cuts the front, on an evaluator that knows every answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search.rungs.bracket import pareto_front
from search.rungs.evaluation import Evaluation, Retrained
from search.rungs.rung import Rung
from search.rungs.sampler import with_infeasible
from search.runs.choice import eligible
from search.stages.retraining import promoted_of
from search.storage.storage import open_study
from space.axes.architecture import Architecture
from space.enumeration.search_space import SearchSpace
from tests.search.synthetic import (
    Evaluator,
    demo_space,
    evaluation,
    figures,
    make_search,
    open_rungs_in,
    run_config,
)


class Frugal(Evaluator):
    """Spends no tokens on what is over the bound, as the evaluator of a run does.

    Args:
        most: the bound on latency.
        slower: how much slower another machine is, which has the higher rungs.
    """

    def __init__(self, most: float, slower: float = 1.0) -> None:
        super().__init__()
        self.most, self.slower = most, slower

    def evaluate(self, architecture: Architecture, rung: int, advance: Any) -> Evaluation:
        found = super().evaluate(architecture, rung, advance)
        latency = found.values["latency"] * (self.slower if rung else 1.0)
        if latency <= self.most or not rung:
            return Evaluation({**found.values, "latency": latency}, found.tokens, found.curve)
        return Evaluation({**figures(architecture, 0), "latency": latency})


def latencies(space: SearchSpace) -> list[float]:
    return sorted(figures(one, 0)["latency"] for one in space.architectures)


def search(
    most: float, space: SearchSpace | None = None, evaluator: Evaluator | None = None, **changes: Any
) -> list[Rung]:
    config = run_config(bounds=(f"latency={most!r}",), **changes)
    space = space or demo_space()
    rungs = open_rungs_in(InMemoryStorage(), config, space)
    make_search(config, space, rungs, evaluator or Frugal(most)).run()
    return rungs


MIDDLE = latencies(demo_space())[len(demo_space()) // 2]


@pytest.mark.parametrize("objectives", [("loss",), ("loss", "latency")])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "qmc", "random"])
def test_everything_that_goes_up_lies_within(
    sampler: str, objectives: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.rungs.sampler.START_UP", 4)
    monkeypatch.setattr("search.rungs.loop.START_UP", 4)
    rungs = search(MIDDLE, sampler=sampler, objectives=objectives, trials=16, rung_candidates=(6, 3))
    assert 16 <= rungs[0].count() <= 32
    assert [rung.count() for rung in rungs[1:]] == [6, 3]
    over = [record for record in rungs[0].records() if not record.feasible]
    assert over, "the bound leaves some out"
    assert {r.architecture for r in over} == {
        r.architecture for r in rungs[0].records() if figures(r.architecture, 0)["latency"] > MIDDLE
    }
    assert all(figures(one, 0)["latency"] <= MIDDLE for rung in rungs[1:] for one in rung.entered())
    for rung in rungs:
        for trial in rung.study.get_trials():
            assert trial.state is TrialState.COMPLETE
            assert trial.constraints == {"latency": pytest.approx(found(trial, rung) / MIDDLE - 1)}
            assert trial.user_attrs["feasible"] is (found(trial, rung) <= MIDDLE)
            excess = max(0.0, found(trial, rung) - MIDDLE)
            assert trial.user_attrs.get("over", {"latency": 0.0}) == {"latency": pytest.approx(excess)}


def found(trial: Any, rung: Rung) -> float:
    latency: float = trial.user_attrs["values"]["latency"]
    return latency


def test_the_front_of_an_exhausted_space_is_the_one_that_brute_force_finds() -> None:
    space = demo_space()
    rungs = search(MIDDLE, trials=1000, rung_tokens=(1000,), rung_candidates=(1000,))
    objectives = ("loss", "latency")
    within = [one for one in space.architectures if figures(one, 0)["latency"] <= MIDDLE]
    truth = [[figures(one, 1)[name] for name in objectives] for one in within]
    top = rungs[-1].feasible()
    front = pareto_front([record.values(objectives) for record in top])
    assert {top[place].architecture for place in front} == {within[place] for place in pareto_front(truth)}
    whole = [[figures(one, 1)[name] for name in objectives] for one in space.architectures]
    unbounded = {space.architectures[place] for place in pareto_front(whole)}
    assert any(figures(one, 0)["latency"] > MIDDLE for one in unbounded), "the bound cuts the front"
    promoted = promoted_of(top, run_config(objectives=("loss",)))
    assert promoted[0].architecture == min(within, key=lambda one: figures(one, 1)["loss"])


def test_a_bound_that_all_break_promotes_nobody_and_ends() -> None:
    rungs = search(latencies(demo_space())[0] - 0.01)
    assert [rung.count() for rung in rungs] == [24, 0, 0], "rung 0 tries twice as many as planned"
    assert len(rungs[0].complete()) == 24
    assert rungs[0].feasible() == []


def test_what_another_machine_finds_too_slow_goes_no_further_and_costs_nothing() -> None:
    most = MIDDLE
    rungs = search(most, evaluator=Frugal(most, slower=1.2), trials=16, rung_candidates=(8, 2))
    held_back = [record for record in rungs[1].records() if not record.feasible]
    assert held_back
    assert len(held_back) < 8
    assert all(record.evaluation is not None and record.evaluation.tokens == 0 for record in held_back)
    assert not {record.architecture for record in held_back} & rungs[2].entered()
    assert not {record.label for record in held_back} & {record.label for record in rungs[1].complete()}


def test_the_constraint_that_was_told_first_stands() -> None:
    """A worker that died between the constraint and the end of its trial leaves the former behind."""
    study = open_study(InMemoryStorage(), "n/r0", ("loss",), {"loss": "nats per token"}, "a space")
    rung = Rung(0, study, demo_space(), ("loss",), bounds={"latency": 10.0})
    rung.enter(demo_space().architectures[0], "uniform")
    trial = rung.unfinished()
    assert trial is not None
    rung.begin(trial, TPESampler())
    trial.set_constraint("latency", 0.5)
    values = figures(demo_space().architectures[0], 0) | {"latency": 9.0}
    rung.tell(trial, Evaluation(values))
    [record] = rung.records()
    assert not record.feasible
    assert study.trials[0].user_attrs["over"] == {"latency": 5.0}


def test_a_sampler_that_learns_from_a_higher_rung_sees_who_is_over_a_bound() -> None:
    rungs = search(MIDDLE, trials=16, rung_candidates=(6, 3))
    seen = with_infeasible(rungs[1].study, rungs[0].study)
    trials = seen.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    over = [trial for trial in trials if trial.constraints["latency"] > 0]
    assert len(trials) - len(over) == 6
    assert len(over) == len([record for record in rungs[0].records() if not record.feasible])
    worst = [max(trial.values[place] for trial in trials) for place in (0, 1)]
    assert all(trial.values == worst for trial in over)
    assert seen.get_trials(states=(TrialState.FAIL,)) == []
    assert seen.directions == rungs[1].study.directions
    own = {trial.number: trial.values for trial in rungs[0].study.trials}
    assert all(own[trial.number] != worst for trial in over), "the study itself stays as it was"


def results(rungs: Sequence[Rung]) -> list[Retrained]:
    return [
        Retrained(one, "uniform", 1.0, None, 1, 1.0, [], "models/x") for one in demo_space().architectures
    ]


def test_only_what_was_found_within_the_bounds_may_be_chosen() -> None:
    rungs = search(MIDDLE, trials=16, rung_candidates=(6, 3))
    chosen = {result.architecture for result in eligible(results(rungs), rungs)}
    assert chosen == {record.architecture for record in rungs[0].feasible()}
    free = open_rungs_in(InMemoryStorage(), run_config(), demo_space())
    assert len(eligible(results(free), free)) == len(demo_space())


def test_a_search_without_bounds_tells_optuna_no_constraint() -> None:
    rungs = open_rungs_in(InMemoryStorage(), run_config(), demo_space())
    make_search(run_config(), demo_space(), rungs).run()
    assert all(trial.constraints == {} for rung in rungs for trial in rung.study.get_trials())
    assert all(record.evaluation == evaluation(record.architecture, 0) for record in rungs[0].feasible())
