"""Every preset that is shipped searches: two trials of each, by formulas in place of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from optuna.storages import InMemoryStorage

from search.rungs.loop import Search, SearchTask, rungs_in
from search.settings.command_line import load_preset
from search.settings.resolution import resolve
from search.terminal.console import Console
from space.counting.counting import parameter_polynomial
from studies.samplers.evaluator import evaluator_of, true_objectives
from tests.search.conftest import demo_config, llama_8b, nemotron_15b, room_for_everything

STUDIES = Path(__file__).resolve().parents[2] / "studies"
PRESETS = sorted(path for path in STUDIES.rglob("*.toml"))
#: Configs of the shape of the teachers that presets name, without weights; fixtures.
TEACHERS = {
    "demo.toml": "demo_config",
    "quick.toml": "demo_config",
    "llama_3_1_8b_to_4b.toml": "llama_8b",
    "minitron_4b_space.toml": "nemotron_15b",
}
#: The spaces of 8 and 15 billion parameters take long to list.
_LARGE = ("llama_3_1_8b_to_4b", "minitron_4b_space")
__all__ = ["demo_config", "llama_8b", "nemotron_15b", "room_for_everything"]


def _param(path: Path) -> ParameterSet:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in _LARGE))


def test_every_preset_has_a_teacher_here() -> None:
    assert {path.name for path in PRESETS} == TEACHERS.keys()


@pytest.mark.parametrize("path", [_param(path) for path in PRESETS])
def test_two_trials_of_a_preset(path: Path, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(TEACHERS[path.name])
    flags = replace(load_preset(path), model=(str(teacher),), device="cpu")
    run = resolve(flags)
    config = replace(run.config, trials=2, rung_candidates=(2,) * len(run.config.rung_candidates))
    evaluator = evaluator_of(config, run.axis_map.teacher, parameter_polynomial(run.axis_map))
    rungs = rungs_in(InMemoryStorage(), config, run.space)
    Search(SearchTask(config, run.space, {}), rungs, evaluator, Console(quiet=True)).run()
    assert [len(rung.complete()) for rung in rungs] == [2] * config.rungs
    truth = true_objectives(evaluator.problem, run.space, replace(config, objectives=("loss",)))[:, 0]
    rows = {architecture: row for row, architecture in enumerate(run.space.architectures)}
    for record in rungs[-1].complete():
        assert record.values(("loss",))[0] > truth[rows[record.architecture]], "retraining is better"
