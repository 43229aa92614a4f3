"""The stages of a family, from configs alone: what each is cut from, who teaches, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluators.metrics.pace import Pace
from search.family.family import Family, Stage, family_of
from search.run import main
from search.settings.flags import Flags
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import student_config
from space.enumeration.hand_made import baselines
from space.input_error import InputError
from tests.search.settings.test_phases import changed

SLOW = pytest.mark.slow


def flags(*models: Path, **others: Any) -> Flags:
    plain = Flags(budget="1.2M,800k,500k", model=tuple(map(str, models)), device="cpu", basis="coordinate")
    return replace(plain, **others)


def family(tmp_path: Path, *models: Path, **others: Any) -> Family:
    return family_of(flags(*models, out=tmp_path / "runs", **others))


def choose(stage: Stage, origin: str) -> dict[str, Any]:
    """A summary in which the stage chose a hand-made student, and its config where its weights would be."""
    resolved = stage.resolved
    architecture = baselines(resolved.space, resolved.axis_map.teacher)[origin]
    path = f"models/01-{architecture.label}"
    config = student_config(resolved.axis_map, architecture, range(architecture.layers))
    config.save_pretrained(stage.directory.path / path)
    row = {"label": architecture.label, "path": path}
    return {"chosen": {"label": architecture.label}, "baselines": [], "promoted": [row]}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("800k,1M", "1,000,000 parameters ±2% follow 800,000 parameters ±2%"),
        pytest.param("800k,800k", "800,000 parameters ±2% follow 800,000 parameters ±2%", marks=SLOW),
        ("1.2M,800k,790k", "790,000 parameters ±2% follow 800,000 parameters ±2%"),
        pytest.param("50%,60%", "1,102,310 parameters ±2% follow 918,592 parameters ±2%", marks=SLOW),
        ("50%,1M", "1,000,000 parameters ±2% follow 918,592 parameters ±2%"),
    ],
)
def test_budgets_descend(budget: str, message: str, demo_config: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        family(tmp_path, demo_config, budget=budget)
    assert str(caught.value) == (
        f"The budgets of a family descend, each below all that the one before it allows; {message}. "
        "Order --budget from large to small, farther apart, or narrow --tolerance."
    )


def test_shares_are_the_originals_and_every_run_has_its_name(demo_config: Path, tmp_path: Path) -> None:
    found = family(tmp_path, demo_config, budget="65.3%, 800k,27%")
    assert [one.amount for one in found.budgets] == [1_199_681, 800_000, 496_040]
    stages = list(found.stages())
    assert [stage.resolved.config.name for stage in stages] == [
        f"demo-config-65.3pct-800k-27pct/{folder}" for folder in ("65.3pct", "800k", "27pct")
    ]
    assert [stage.directory.path for stage in stages] == [
        tmp_path / "runs" / stage.resolved.config.name for stage in stages
    ]
    assert [stage.resolved.config.budget for stage in stages] == [1_199_681, 800_000, 496_040]
    named = family(tmp_path, demo_config, study_name="mine")
    assert [stage.resolved.config.name for stage in named.stages()] == [
        f"mine/{folder}" for folder in ("1.2M", "800k", "500k")
    ]
    assert not (tmp_path / "runs").exists()


def test_a_stand_in_is_the_most_even_student_of_the_run_before(demo_config: Path, tmp_path: Path) -> None:
    first, second, third = family(tmp_path, demo_config).stages()
    assert [stage.assumed for stage in (first, second, third)] == [False, True, True]
    for above, below in ((first, second), (second, third)):
        even = baselines(above.resolved.space, above.resolved.axis_map.teacher)["uniform"]
        assert below.resolved.axis_map.teacher == even
        assert below.resolved.teacher_parameters == above.resolved.space.parameters_of(even)
        assert below.resolved.config.teacher == f"the model that {above.resolved.config.name} chooses"


def test_what_follows_from_the_teacher_stays_the_originals(demo_config: Path, tmp_path: Path) -> None:
    others = {"correct_teacher": "1M", "data": (), "dtype": "bfloat16"}
    first, *later = (stage.resolved.config for stage in family(tmp_path, demo_config, **others).stages())
    for config in later:
        assert (config.data, config.dtype) == (first.data, first.dtype)
        assert config.budget_dtype == first.budget_dtype
        assert (first.teacher_correction, config.teacher_correction) == (1_000_000, 0)


@pytest.mark.parametrize("corrected", [pytest.param(False, marks=SLOW), True])
def test_the_original_teaches_unless_the_previous_is_asked(
    corrected: bool, demo_config: Path, tmp_path: Path
) -> None:
    asked = {"correct_teacher": "1M"} if corrected else {}
    first, second, third = family(tmp_path, demo_config, **asked).stages()
    original = str(first.directory.path / "teacher") if corrected else str(demo_config)
    assert [one.resolved.config.taught_by for one in (first, second, third)] == ["", original, original]
    for one in (second, third):
        assert one.resolved.teaching is first.resolved.axis_map
    previous = list(family(tmp_path, demo_config, taught_by="previous", **asked).stages())
    assert [one.resolved.config.taught_by for one in previous] == ["", "", ""]
    for one in previous:
        assert one.resolved.teaching is one.resolved.axis_map


def test_every_basis_of_a_later_run_is_taught_by_the_original(demo_config: Path, tmp_path: Path) -> None:
    first, second = family(tmp_path, demo_config, budget="1.2M,800k", basis="auto").stages()
    turned = second.resolved.turned
    assert turned is not None
    assert turned.config.taught_by == str(demo_config)
    assert turned.config.name == second.resolved.config.name
    assert turned.teaching is first.resolved.axis_map


def test_the_model_that_was_chosen_is_cut_next(demo_config: Path, tmp_path: Path) -> None:
    found = family(tmp_path, demo_config)
    first = found.stage(0, None)
    parent = found.parent(first, choose(first, "depth"))
    second = found.stage(1, parent)
    chosen = baselines(first.resolved.space, first.resolved.axis_map.teacher)["depth"]
    assert second.resolved.axis_map.teacher == chosen
    assert Path(second.resolved.config.teacher) == first.directory.path / f"models/01-{chosen.label}"
    assert second.resolved.config.passed_over == ()
    third = found.stage(2, found.parent(second, choose(second, "mlp-heads")))
    assert third.resolved.config.taught_by == str(demo_config), "the original, two runs before"


def test_a_run_without_a_model_ends_the_family(demo_config: Path, tmp_path: Path) -> None:
    found = family(tmp_path, demo_config)
    first = found.stage(0, None)
    with pytest.raises(InputError) as caught:
        found.parent(first, {"chosen": None})
    assert str(caught.value) == (
        "A family goes on from the model that the run before chose; no model of "
        f"{first.directory.path} could be retrained. See {first.directory.report} for the reasons."
    )


def test_a_nearer_teacher_at_hand_takes_the_place_of_the_model_before(
    demo_config: Path, tmp_path: Path
) -> None:
    """Of 1.84M, 1.05M and 656k: 1.2M is cut from the first, 800k from the second, 500k from the third."""
    middle = changed(demo_config, tmp_path / "middle", num_hidden_layers=4)
    small = changed(demo_config, tmp_path / "small", num_hidden_layers=2)
    models = (demo_config, small, middle)
    stages = list(family(tmp_path, *models, correct_teacher="1M").stages())
    assert [stage.resolved.config.teacher for stage in stages] == list(map(str, (demo_config, middle, small)))
    assert [stage.assumed for stage in stages] == [False, False, False]
    for stage in stages:
        config = stage.resolved.config
        assert config.taught_by == "", "each line of cuts has its own original"
        assert config.teacher_correction == 1_000_000
    assert stages[0].resolved.config.passed_over == (str(small), str(middle))
    assert stages[2].resolved.config.passed_over[1:] == (str(demo_config), str(middle))
    near = list(family(tmp_path, demo_config, middle, budget="1.2M,1.1M").stages())
    assert near[1].assumed, "a million and a twentieth are too few for 1.1M"
    assert near[1].resolved.config.taught_by == str(demo_config)


def test_a_later_budget_that_cannot_be_reached_is_refused_at_once(
    demo_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--budget", "1.2M,1k", "--model", str(demo_config), "--out", str(tmp_path / "runs")]
    assert main([*arguments, "--device", "cpu", "--basis", "coordinate", "-q"]) == 2
    said = capsys.readouterr()
    assert "1,000 parameters" in said.err
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_directory_of_another_configuration_is_refused_at_once(demo_config: Path, tmp_path: Path) -> None:
    found = family(tmp_path, demo_config)
    first = found.stage(0, None)
    with first.directory.joined(first.resolved.config):
        pass
    list(found.stages())
    with pytest.raises(InputError, match="seed is 1, was 0"):
        list(family(tmp_path, demo_config, seed=1).stages())


def test_hours_are_shared_and_made_tokens_once_for_each_run(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun keeps what its hours came to, however fast the device is by then."""
    paces = iter(range(1000, 50_000, 1000))
    monkeypatch.setattr(
        "search.settings.resolution.pace_of", lambda *_: Pace(next(paces), 10_000.0, 0.0, timed=True)
    )
    asked = {"hours": 3.0, "rung_tokens": ("8k",)}
    first = family(tmp_path, demo_config, **asked).stage(0, None)
    config = first.resolved.config
    assert config.hours == 1.0
    with first.directory.joined(config):
        pass
    again = [stage.resolved.config for stage in family(tmp_path, demo_config, **asked).stages()]
    assert again[0] == config
    assert config.search_tokens < again[1].search_tokens < again[2].search_tokens


def test_finished_runs_are_planned_on_from(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = family(tmp_path, demo_config)
    first = found.stage(0, None)
    summary = choose(first, "depth")
    monkeypatch.setattr("search.family.family.read", lambda path: {first.directory.summary: summary}[path])
    second = next(stage for number, stage in enumerate(found.stages()) if number == 1)
    assert not second.assumed
    assert second.resolved.config.teacher.endswith(summary["promoted"][0]["path"])


def test_the_plan_shows_every_run_and_says_what_is_not_known(
    demo_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = shutil.copytree(demo_config, tmp_path / "twin")
    arguments = ["--budget", "1.2M,800k", "--model", str(twin), "--out", str(tmp_path / "runs"), "--plan"]
    assert main([*arguments, "--device", "cpu", "--basis", "coordinate"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("— twin-1.2M-800k/1.2M —\nteacher ")
    assert second.startswith(
        "— twin-1.2M-800k/800k —\nthe model that twin-1.2M-800k/1.2M chooses is not there yet: counted with"
    )
    assert f"taught by       {twin}\n" in second
    for text in (first, second):
        assert text.count("\narithmetic ") == 1
    assert not (tmp_path / "runs").exists()


def test_the_students_count_of_the_stand_in_is_what_its_config_builds(
    demo_config: Path, tmp_path: Path
) -> None:
    second = list(family(tmp_path, demo_config, budget="1.2M,800k").stages())[1]
    axis_map = second.resolved.axis_map
    about = json.loads(axis_map.config.to_json_string())
    assert about["hidden_size"] == axis_map.teacher.hidden
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == second.resolved.teacher_parameters
