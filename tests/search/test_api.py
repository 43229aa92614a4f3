"""The stages as functions: the ten lines of the README, and what they give."""

from __future__ import annotations

import json
import pathlib
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluators.metrics.loss import validation_loss
from search.api import Flags, Run, extract, rank, retrain, search
from search.choose import main as choose
from search.settings import costs
from space.input_error import InputError
from tests.warm_python import brief

README = Path(__file__).resolve().parents[2] / "README.md"
#: Small numbers in place of the defaults.
SMALL = (
    'trials=4, rung_tokens=("1k",), retrain_tokens="2k", promote=2, basis="coordinate", repair="none", '
    'depth_by="influence", device="cpu", quiet=True'
)


@pytest.fixture(scope="module")
def lived(real: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The names that the README's lines leave, run on a real model with small numbers."""
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if "search.api" in block
    )
    folder = tmp_path_factory.mktemp("api")
    code = code.replace("path/to/model", str(real / "stories260K"))
    code = code.replace("path/to/text.txt", str(stories))
    called, times = re.subn(r"= Flags\((.*)\)", rf'= Flags(\1, out=Path("{folder}"), {SMALL})', code)
    assert times == 1
    names: dict[str, object] = {"Path": Path}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMSEARCH_CACHE", str(folder / "cache"))
        patch.setattr("search.settings.costs._WORKLOADS", brief(costs._WORKLOADS))
        exec(compile(called, str(README), "exec"), names)
    return names


def test_the_readmes_lines_run(lived: dict[str, object]) -> None:
    trials, models, run = lived["trials"], lived["models"], lived["run"]
    assert isinstance(trials, pd.DataFrame)
    assert isinstance(models, pd.DataFrame)
    assert isinstance(run, Run)
    assert set(trials["rung"]) == {0, 1}
    assert (trials["state"] == "complete").all()
    assert models["chosen"].sum() == 1
    assert (run.directory.path / "report.html").exists()
    command = json.loads((run.directory.path / "summary.json").read_text())["command"]
    assert command.startswith("search.api.rank(Flags(budget='60%', model=(")
    flags = eval(
        command.removeprefix("search.api.rank(").removesuffix(")"), {"Flags": Flags, **vars(pathlib)}
    )
    assert flags == lived["flags"]


def test_what_it_retrained_is_what_it_says(lived: dict[str, object]) -> None:
    models, run = lived["models"], lived["run"]
    assert isinstance(models, pd.DataFrame)
    assert isinstance(run, Run)
    chosen = models[models["chosen"]].iloc[0]
    student = AutoModelForCausalLM.from_pretrained(chosen["path"])
    assert student.num_parameters() == chosen["parameters"]
    loss = validation_loss(student.eval(), run.context.corpus.validation)
    assert loss == pytest.approx(chosen["loss"], abs=1e-4)


def test_a_student_of_any_size_is_cut(lived: dict[str, object]) -> None:
    run = lived["run"]
    assert isinstance(run, Run)
    teacher = run.context.teacher.model
    whole = extract(run)
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(whole(tokens).logits, teacher(tokens).logits, atol=1e-4, rtol=1e-4)
    small = extract(run, hidden=48, layers=3, kv_heads=2)
    assert (small.config.hidden_size, small.config.num_hidden_layers) == (48, 3)
    groups = teacher.config.num_attention_heads // teacher.config.num_key_value_heads
    assert small.config.num_attention_heads == 2 * groups, "query heads follow"
    assert small(tokens).logits.isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hiden": 48}, "Did you mean 'hidden'"),
        ({"hidden": 100}, "Name sizes from 1 to 64"),
        ({"experts": 4}, "Leave experts out"),
        ({"heads": 3}, "have to go together"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    lived: dict[str, object], sizes: dict[str, int], message: str
) -> None:
    run = lived["run"]
    assert isinstance(run, Run)
    with pytest.raises(InputError, match=re.escape(message)):
        extract(run, **sizes)


def test_a_stage_called_again_repeats_nothing(lived: dict[str, object]) -> None:
    run, trials = lived["run"], lived["trials"]
    assert isinstance(run, Run)
    assert isinstance(trials, pd.DataFrame)
    before = json.loads((run.directory.path / "summary.json").read_text())["trials"]
    again = search(run)
    pd.testing.assert_frame_equal(again, trials)
    retrain(run)
    assert json.loads((run.directory.path / "summary.json").read_text())["trials"] == before


def test_a_choice_that_was_saved_stands_until_it_is_taken_back(lived: dict[str, object]) -> None:
    run, models = lived["run"], lived["models"]
    assert isinstance(run, Run)
    assert isinstance(models, pd.DataFrame)
    folder = str(run.directory.path)
    usual = models[models["chosen"]].iloc[0]
    kept = models[(models["role"] != "teacher") & models["path"].notna()]
    fastest = kept.sort_values("latency_ms").iloc[0]["label"]
    assert choose([folder, "--weights", "latency=1", "--save"]) == 0
    again = retrain(run)
    assert again[again["chosen"]].iloc[0]["label"] == fastest
    assert choose([folder, "--save"]) == 0
    again = retrain(run)
    assert again[again["chosen"]].iloc[0]["label"] == usual["label"]
    assert not run.directory.choice.exists()


def test_retraining_wants_a_search(
    lived: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
    flags = lived["flags"]
    assert isinstance(flags, Flags)
    flags = replace(flags, out=tmp_path)
    with pytest.raises(InputError, match=r"Call search\(run\) first"):
        retrain(rank(flags))
