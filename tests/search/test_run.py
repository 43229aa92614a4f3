"""The whole search as a user runs it: in processes of its own, on a trained teacher and real text."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evaluators.metrics.loss import validation_loss
from search.runs.summary import check
from tests.docs.walk import stations
from tests.search.runner import NAME, Runner, finished_trials, without_times

Done = tuple[Runner, str]
#: Runs a second process with transformers and torch alone: no code of this project on its path.
LOADER = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
found = {}
for path in sys.argv[1:]:
    model, about = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    logits = model(torch.arange(3, 35)[None]).logits
    found[path] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "written": written.shape[1] - inputs["input_ids"].shape[1],
        "logits": logits.double().sum().item(),
        "problems": sorted([*about["missing_keys"], *about["unexpected_keys"]]),
        "loaded": [name for name in ("search", "space", "evaluators", "optuna") if name in sys.modules],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cache(small_run: Path) -> Path:
    return small_run.parents[1] / "cache"


@pytest.fixture(scope="module")
def undisturbed(small_run: Path, small_flags: list[str], cache: Path) -> Done:
    """The run that is shared, and what it printed; do not start it."""
    return Runner(small_run.parents[1], small_flags, cache), (small_run.parents[1] / "stdout").read_text()


def test_it_ends_with_models_a_report_and_a_summary(undisturbed: Done) -> None:
    runner, said = undisturbed
    summary = runner.summary()
    check(summary)
    assert summary["teacher"]["parameters"] == 260_032
    assert [len([t for t in summary["trials"] if t["rung"] == rung]) for rung in (0, 1, 2)] == [8, 4, 2]
    assert {t["origin"] for t in summary["trials"]} == {"search", "uniform", "mlp-heads", "depth"}
    assert len(summary["promoted"]) == 2
    assert {b["origin"] for b in summary["baselines"]} == {"uniform", "mlp-heads", "depth", "random-weights"}
    assert all(entry["loss"] is not None for entry in (*summary["promoted"], *summary["baselines"]))
    assert (runner.directory / "report.html").stat().st_size > 100_000
    assert (runner.directory / "ranking.safetensors").exists()
    assert summary["chosen"]["label"] in said
    assert str(Path("runs") / NAME / "report.html") in said
    for entry in summary["promoted"]:
        assert (runner.directory / entry["path"] / "README.md").exists()
        assert entry["loss"] < entry["loss_after_pruning"], "distillation helps"


def test_it_went_the_way_that_the_page_about_the_architecture_tells(small_run: Path) -> None:
    called = json.loads((small_run.parents[1] / "stations.json").read_text())
    assert [tuple(one) for one in called] == [(station.file, station.function) for station in stations()]


def test_the_promoted_and_the_best_baseline_have_all_tokens_and_the_others_a_quarter(
    undisturbed: Done,
) -> None:
    summary = undisturbed[0].summary()
    trained = {entry["origin"]: entry for entry in summary["baselines"]}
    promoted = {entry["label"] for entry in summary["promoted"]}
    losses = {
        (trial["rung"], -trial["loss"]): trial["origin"]
        for trial in summary["trials"]
        if trial["origin"] != "search"
    }
    best = losses[max(losses)]
    for origin, entry in trained.items():
        contestant = origin == best or (entry["label"] in promoted and origin != "random-weights")
        assert entry["short"] == (not contestant)
        assert entry["tokens"] == (6144 if contestant else 1024), "6000 and 1500 in whole steps of 1024"


@pytest.mark.slow
def test_its_models_load_with_transformers_alone(undisturbed: Done) -> None:
    runner, _ = undisturbed
    summary = runner.summary()
    entries = {e["path"]: e for e in (*summary["promoted"], *summary["baselines"]) if e["path"]}
    assert {f"models/{p.name}" for p in (runner.directory / "models").iterdir()} == set(entries)
    paths = [str(runner.directory / path) for path in entries]
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOADER, *paths], cwd="/", capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    budget = summary["budget"]
    for path, entry in entries.items():
        loaded = found[str(runner.directory / path)]
        assert loaded["parameters"] == entry["parameters"]
        assert abs(loaded["parameters"] / budget["amount"] - 1) <= budget["tolerance"]
        assert loaded["written"] == 8
        assert loaded["problems"] == []
        assert loaded["loaded"] == []
        model = AutoModelForCausalLM.from_pretrained(runner.directory / path)
        with torch.no_grad():
            expected = model(torch.arange(3, 35)[None]).logits.double().sum().item()
        assert loaded["logits"] == pytest.approx(expected, rel=1e-5)


def test_the_losses_it_states_are_those_of_the_models_it_wrote(
    undisturbed: Done, real: Path, cache: Path
) -> None:
    runner, _ = undisturbed
    (text,) = (cache / "text").glob("*.safetensors")
    validation = load_file(text)["validation"]
    entries = [("teacher", real / "stories260K", runner.summary()["teacher"]["loss"])]
    entries += [(e["label"], runner.directory / e["path"], e["loss"]) for e in runner.summary()["promoted"]]
    for label, path, stated in entries:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        assert validation_loss(model, validation) == pytest.approx(stated, abs=1e-5), label


def test_started_again_it_repeats_nothing(
    undisturbed: Done, tmp_path: Path, small_flags: list[str], cache: Path
) -> None:
    calm, first = undisturbed
    shutil.copytree(calm.directory, tmp_path / "runs" / NAME)
    runner = Runner(tmp_path, small_flags, cache)
    before = runner.summary()
    models = {p: p.stat().st_mtime_ns for p in (runner.directory / "models").rglob("*.safetensors")}
    assert models
    again = runner.finish()
    assert again.returncode == 0, again.stderr
    assert again.stdout == first
    assert "reusing the ranking" in again.stderr
    assert without_times(runner.summary()) == without_times(before)
    assert models == {p: p.stat().st_mtime_ns for p in models}


def test_stopped_and_killed_it_ends_in_the_same_summary(
    undisturbed: Done, tmp_path: Path, small_flags: list[str], cache: Path
) -> None:
    """By Ctrl-C, after which it says how to go on, and by SIGKILL in a retraining."""
    runner = Runner(tmp_path, small_flags, cache)
    assert runner.stop_when(lambda run: finished_trials(run, 0) >= 3, signal.SIGINT) == 130
    assert not (runner.directory / "summary.json").exists()
    assert finished_trials(runner.directory, 0) >= 3, "what was finished stays"
    in_retraining = runner.stop_when(lambda run: any((run / "retraining").glob("*.json")), signal.SIGKILL)
    assert in_retraining == -signal.SIGKILL
    result = runner.finish()
    assert result.returncode == 0, result.stderr
    assert without_times(runner.summary()) == without_times(undisturbed[0].summary())


@pytest.mark.slow
def test_killed_at_five_stages_it_ends_in_the_same_summary(
    undisturbed: Done, tmp_path: Path, small_flags: list[str], cache: Path
) -> None:
    runner = Runner(tmp_path, small_flags, cache)
    stages: list[Callable[[Path], bool]] = [
        lambda run: (run / "config.toml").exists(),
        lambda run: (run / "targets").exists(),
        lambda run: finished_trials(run, 0) >= 3,
        lambda run: finished_trials(run, 1) >= 2,
        lambda run: any((run / "retraining").glob("*.json")),
    ]
    for stage in stages:
        assert runner.stop_when(stage, signal.SIGKILL) == -signal.SIGKILL
    result = runner.finish()
    assert result.returncode == 0, result.stderr
    assert without_times(runner.summary()) == without_times(undisturbed[0].summary())
