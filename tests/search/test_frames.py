"""Frames say what the summary says, and of a run at work what its studies say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from search.frames import models, trials
from search.rungs.loop import open_rungs
from search.runs.summary import read
from space.input_error import InputError
from tests.search.saved import save_run
from tests.search.synthetic import Evaluator, demo_space, figures, make_search, run_config


def test_the_trials_are_those_of_the_summary(small_run: Path) -> None:
    summary = read(small_run / "summary.json")
    frame = trials(small_run)
    expected = pd.DataFrame(summary["trials"])
    assert len(frame) == len(expected) == 14
    for name in ("rung", "number", "state", "label", "origin", "parameters", "loss", "latency_ms", "tokens"):
        assert frame[name].tolist() == expected[name].tolist(), name
    for name, column in (("memory_bytes", "memory"), ("flops", "flops")):
        assert frame[name].tolist() == [entry["objectives"][column] for entry in summary["trials"]]
    for axis in ("hidden", "mlp", "heads", "kv_heads", "layers", "kept_layers"):
        assert frame[axis].tolist() == [entry["architecture"][axis] for entry in summary["trials"]], axis
    assert frame["feasible"].all()
    assert frame["reason"].isna().all()
    assert (frame["seconds"][frame["rung"] > 0] > 0).all()
    assert str(frame.dtypes["parameters"]) == "Int64"
    assert str(frame.dtypes["state"]) == "category"
    assert "experts" not in frame, "an axis that the teacher lacks"


def test_the_models_are_those_of_the_summary(small_run: Path) -> None:
    summary = read(small_run / "summary.json")
    frame = models(small_run)
    assert len(frame) == 5, "teacher, two promoted, one more baseline, and random weights"
    assert frame["role"].tolist() == ["teacher", "promoted", "promoted", "baseline", "baseline"]
    for role, entries in (("promoted", summary["promoted"]), ("baseline", summary["baselines"])):
        for entry in entries:
            mine = (frame["role"] == role) & (frame["label"] == entry["label"])
            for _, row in frame[mine & (frame["origin"] == entry["origin"])].iterrows():
                assert row["loss"] == entry["loss"]
                assert row["bits_per_byte"] == entry["bits_per_byte"]
                assert row["memory_bytes"] == entry["objectives"]["memory"]
                assert row["tokens"] == entry["tokens"]
                if entry["path"]:
                    assert row["path"] == str(small_run / entry["path"])
    assert set(frame["label"][1:]) == {one["label"] for one in summary["baselines"]}
    assert frame["label"][frame["chosen"]].tolist() == [summary["chosen"]["label"]]
    teacher = frame.iloc[0]
    assert (teacher["loss"], teacher["parameters"]) == (summary["teacher"]["loss"], 260_032)


def test_a_run_without_its_summary_says_the_same_of_what_was_measured(
    small_run: Path, tmp_path: Path
) -> None:
    """As it stood before the last stage: what was retrained lies in files of its own."""
    copy = tmp_path / "small"
    shutil.copytree(small_run, copy)
    (copy / "summary.json").unlink()
    pd.testing.assert_frame_equal(trials(copy), trials(small_run))
    same = ["label", "origin", "loss", "parameters", "latency_ms", "layers", "kept_layers", "flops"]
    same += ["loss_after_pruning", "loss_after_short_distillation", "path"]

    def retrained(run: Path) -> list[list[Any]]:
        frame = models(run)[lambda one: (one["role"] != "teacher") & (one["origin"] != "random-weights")]
        rows = [[str(cell) for cell in row] for row in frame[same].to_numpy()]
        return sorted([cell.replace(str(run), "") for cell in row] for row in rows)

    assert len(retrained(copy)) == 3
    assert retrained(copy) == retrained(small_run)
    assert models(copy).iloc[0]["loss"] == models(small_run).iloc[0]["loss"], "the teacher's"


@pytest.fixture
def at_work(tmp_path: Path) -> Path:
    """A run whose worker was killed in its eighth evaluation, one candidate of which failed."""
    directory = save_run(tmp_path, name="synthetic", trials=12)
    (directory / "summary.json").unlink()

    def fails(architecture: Any, rung: int) -> bool:
        return rung == 0 and architecture.layers == 4

    rungs = open_rungs(run_config(trials=12), demo_space(), directory)
    with pytest.raises(KeyboardInterrupt):
        make_search(run_config(trials=12), demo_space(), rungs, Evaluator(fails, stop_at=7)).run()
    return directory


def test_a_run_at_work_has_what_its_studies_have(at_work: Path) -> None:
    before = (at_work / "study.journal").read_bytes()
    frame = trials(at_work)
    assert frame["state"].value_counts().to_dict() == {"complete": 6, "failed": 1, "running": 1, "over": 0}
    complete = frame[frame["state"] == "complete"]
    by_label = {architecture.label: architecture for architecture in demo_space().architectures}
    for _, row in complete.iterrows():
        expected = figures(by_label[row["label"]], row["rung"])
        assert (row["loss"], row["latency_ms"]) == (expected["loss"], expected["latency"])
    failed = frame[frame["state"] == "failed"].iloc[0]
    assert failed["reason"] == "no luck at rung 0"
    assert not failed["feasible"]
    assert frame[frame["state"] == "running"]["feasible"].isna().all()
    assert frame["kept_layers"].isna().all(), "no ranking is there yet"
    assert (at_work / "study.journal").read_bytes() == before, "reading changes nothing"


def test_before_the_first_trial_the_columns_are_there(tmp_path: Path) -> None:
    directory = save_run(tmp_path, name="synthetic")
    open_rungs(run_config(), demo_space(), directory)
    frame = trials(directory)
    assert len(frame.query("rung == 0 and feasible and loss < 3")) == 0
    make_search(run_config(), demo_space(), open_rungs(run_config(), demo_space(), directory)).run()
    (directory / "summary.json").unlink()
    assert set(frame) == set(trials(directory)) - {"hidden", "mlp", "heads", "kv_heads", "layers"}


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    directory = save_run(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        trials(directory)
    assert not (directory / "study.journal").exists()
    (directory / "study.journal").touch()
    with pytest.raises(InputError, match="no study there is called demo/r0"):
        trials(directory)
    assert (directory / "study.journal").read_bytes() == b""
    with pytest.raises(InputError, match="there is no"):
        models(tmp_path / "nothing")
