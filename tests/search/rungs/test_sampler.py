"""Whatever Optuna's samplers propose, each architecture of a space is tried once, in the same order again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from search.rungs.rung import Rung
from search.rungs.sampler import (
    KINDS,
    START_UP,
    SpaceSampler,
    architecture_of,
    distributions,
    nearest,
    params_of,
)
from search.settings.flags import Flags
from search.settings.objectives import UNITS
from search.storage.storage import open_study
from space.axes.architecture import Architecture
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError
from tests.search.synthetic import demo_space, evaluation

OBJECTIVES = ("loss", "latency")


@pytest.fixture(autouse=True)
def silent_optuna(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Optuna warns of nothing; warnings of Python are errors already."""
    library = logging.getLogger("optuna")
    library.addHandler(caplog.handler)
    yield
    library.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def open_rung(storage: BaseStorage, space: SearchSpace, index: int = 0) -> Rung:
    return Rung(
        index, open_study(storage, f"study/r{index}", OBJECTIVES, UNITS, "a space"), space, OBJECTIVES
    )


def sampler_for(kind: str, rung: Rung, number: int, guide: Rung | None = None) -> SpaceSampler:
    """A sampler made anew, as the search makes one for each trial."""
    return SpaceSampler(kind, rung.space, guide.study if guide else None, seed=0, number=number)


def try_one(kind: str, rung: Rung, guide: Rung | None = None) -> Architecture:
    """Ask, evaluate, tell."""
    sampler = sampler_for(kind, rung, rung.count(), guide)
    trial = rung.ask(sampler)
    architecture = rung.begin(trial, sampler)
    rung.tell(trial, evaluation(architecture, rung.index))
    return architecture


def test_the_flag_takes_every_kind() -> None:
    assert set(get_args(get_type_hints(Flags)["sampler"])) == set(KINDS)


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "qmc", "random"])
def test_the_whole_space_is_tried_and_nothing_twice(kind: str) -> None:
    rung = open_rung(InMemoryStorage(), demo_space())
    tried = [try_one(kind, rung) for _ in demo_space().architectures]
    assert sorted(tried) == sorted(demo_space().architectures)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_space_is_exhausted(kind: str) -> None:
    space = demo_space(tolerance=0.004)
    assert START_UP < len(space.architectures) < 20
    rung = open_rung(InMemoryStorage(), space)
    assert sorted(try_one(kind, rung) for _ in space.architectures) == sorted(space.architectures)
    with pytest.raises(AssertionError, match="more trials were asked for than there are architectures"):
        try_one(kind, rung)


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_follow_from_seed_and_history_alone(kind: str) -> None:
    rung, storage = open_rung(InMemoryStorage(), demo_space()), InMemoryStorage()
    in_one_go = [try_one(kind, rung) for _ in range(START_UP + 4)]
    with_breaks = [try_one(kind, open_rung(storage, demo_space())) for _ in range(START_UP + 4)]
    assert with_breaks == in_one_go


def test_proposals_are_the_same_from_disk(quick_disk: Path) -> None:
    rung, url = open_rung(InMemoryStorage(), demo_space()), f"sqlite:///{quick_disk}/study.db"
    in_one_go = [try_one("tpe", rung) for _ in range(START_UP + 4)]
    with_breaks = [try_one("tpe", open_rung(RDBStorage(url), demo_space())) for _ in range(START_UP + 4)]
    assert with_breaks == in_one_go


@pytest.mark.parametrize("settled", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_cut_off_half_way_becomes_what_it_would_have_been(kind: str, settled: int) -> None:
    undisturbed, disturbed = (open_rung(InMemoryStorage(), demo_space()) for _ in range(2))
    number = START_UP + 3
    for rung in (undisturbed, disturbed):
        for _ in range(number):
            try_one(kind if kind == "nsga2" else "random", rung)
    sampler = sampler_for(kind, disturbed, number)
    cut_off = disturbed.ask(sampler)
    for name, one in list(distributions(demo_space()).items())[:settled]:
        cut_off.suggest_int(name, one.low, one.high, step=one.step)
    if settled == 0:
        assert cut_off.relative_params, "it was proposed, and nothing of it was written"
    trial = disturbed.unfinished()
    assert trial is not None
    assert trial.number == number
    again = disturbed.begin(trial, sampler_for(kind, disturbed, number))
    assert again == try_one(kind, undisturbed)


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_guide_is_what_is_learned_from(kind: str) -> None:
    """Rung 0 has no trials to learn from; above it more layers were better."""
    found = guided(kind, ask=7)
    assert found == guided(kind, ask=7), "the same again from a study opened anew"
    layers = [architecture.layers for number, architecture in enumerate(found) if number % 4]
    average = sum(a.layers for a in demo_space().architectures) / len(demo_space().architectures)
    assert sum(layers) / len(layers) > average + 0.5


def guided(kind: str, ask: int) -> list[Architecture]:
    """What is proposed at rung 0 when rung 1 has finished a dozen trials."""
    storage, space = InMemoryStorage(), demo_space()
    rung, above = (open_rung(storage, space, index) for index in (0, 1))
    learned = space.architectures[::6]
    assert len(learned) > START_UP
    for place, architecture in enumerate(learned):
        above.study.add_trial(
            optuna.create_trial(
                params=params_of(architecture, space),
                distributions=dict(distributions(space)),
                values=[10.0 - architecture.layers, 1.0 + place / 1000],
            )
        )
    return [try_one(kind, rung, above) for _ in range(ask)]


@settings(max_examples=30)
@given(st.integers(200_000, 1_800_000), st.sampled_from([0.005, 0.02, 0.1]))
def test_the_parameters_of_a_trial_hold_every_size(budget: int, tolerance: float) -> None:
    try:
        space = demo_space(budget, tolerance)
    except InputError:
        assume(False)
    found = distributions(space)
    sampled = {name: one for name, one in found.items() if not one.single()}
    for row, architecture in enumerate(space.architectures):
        params = params_of(architecture, space)
        assert all(params[name] in range(one.low, one.high + 1, one.step) for name, one in found.items())
        assert architecture_of(params, space) == architecture
        assert nearest(params, space.table, dict(sampled)) == row
