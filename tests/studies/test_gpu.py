"""The acceptance on a GPU at toy size on the CPU: every part measures, and nothing stops the others."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from evaluators.metrics.pace import Pace
from space.input_error import InputError
from studies.gpu import __main__ as command
from studies.gpu import pace
from studies.gpu.__main__ import SHARES, main
from studies.gpu.bench import Bench, NotHereError, OutOfTimeError
from studies.gpu.findings import Findings
from studies.gpu.shapes import TOY

PARTS = ("memory", "pace", "ranking", "cutting")


def forget() -> None:
    """Accelerate holds one precision a process, and other tests have theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes about a tiny teacher."""
    forget()
    path = tmp_path_factory.mktemp("gpu") / "new" / "figures.json"
    with pytest.MonkeyPatch.context() as patch:  # no product of matrices is timed for the plan
        fast = Pace(1e9, 1e10, 1e-6, timed=False)
        patch.setattr("search.settings.resolution.pace_estimate", lambda *_: fast)
        assert main(["--toy", "--minutes", "20", "--out", str(path), "--parts", *PARTS]) == 0
    forget()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "figures.json", {"device": "none"})


@pytest.fixture
def bench(findings: Findings) -> Bench:
    findings.begin("memory")
    return Bench("memory", TOY, findings, 60.0, 60.0)


def figures(found: dict[str, Any], part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found["parts"][part]["figures"]
    return rows


# The whole at toy size


def test_the_file_begins_with_what_was_measured_on(toy: dict[str, Any]) -> None:
    about = ["device", "device_bytes", "torch", "transformers", "torchao"]
    assert list(toy)[: len(about)] == about
    assert toy["torch"] == torch.__version__.split("+")[0] or toy["torch"] == torch.__version__
    assert {"driver", "cuda", "minutes", "parts"} <= toy.keys()
    assert [(name, part["state"]) for name, part in toy["parts"].items()] == [
        (name, "done") for name in PARTS
    ]


def test_the_ledger_stands_beside_what_was_measured(toy: dict[str, Any]) -> None:
    rows = figures(toy, "memory")
    assert [row["what"] for row in rows] == [
        "tiny to 60%, hidden targets, the ledger's optimiser",
        "tiny to 60%, live targets, the ledger's optimiser",
        "tiny to 60%, hidden targets, 8-bit states",
    ]
    assert [row["optimizer"] for row in rows] == ["adamw", "adamw", "adamw-8bit"]
    for row in rows:
        assert row["fits"]
        assert row["foretold_gb"] == pytest.approx(sum(row["foretold_bytes"].values()) / 1e9, rel=1e-4)
        assert not {"process", "text", "workspace", "sorted weights"} & row["foretold_bytes"].keys()
        each = 2 if row["optimizer"] == "adamw-8bit" else 4
        assert row["foretold_bytes"]["weights"] == each * row["parameters"]


def test_every_form_of_targets_is_timed_beside_a_matrix_product(toy: dict[str, Any]) -> None:
    product, *rows = figures(toy, "pace")
    assert product["tflops"] > 0
    assert [row["what"] for row in rows] == [variant.words for variant in pace.VARIANTS]
    assert all("tokens_per_s" in row for row in rows[:3]), "live, hidden and sampled, plain"
    for row in (row for row in rows if "tokens_per_s" in row):
        assert row["hours_per_billion_tokens"] == pytest.approx(1e9 / row["tokens_per_s"] / 3600, rel=1e-4)
        assert row["utilisation"] == pytest.approx(row["tflops"] / product["tflops"], rel=1e-4)
        assert row["tokens_per_s"] == pytest.approx(row["step_blocks"] * 32 / row["step_s"], rel=1e-4)
    if not torch.cuda.is_available():
        reasons = {row.get("skipped") for row in rows[3:]}
        assert reasons == {"Liger runs on CUDA", "blocks are compiled on CUDA"}


def test_ranking_and_cutting_are_timed(toy: dict[str, Any]) -> None:
    widths, moments, perplexity = figures(toy, "ranking")
    assert widths["ratio"] == pytest.approx(widths["seconds"] / widths["forward_pass_s"], rel=1e-4)
    assert widths["tokens"] == moments["tokens"] == perplexity["tokens"] == 64
    assert moments["of_all_layers_gb"] == pytest.approx(moments["moments_gb"] * 3 / 2, rel=1e-4)
    assert (perplexity["layers"], perplexity["states_reused"]) == ([0, 1], True)
    host, device = figures(toy, "cutting")
    assert min(host["seconds"], host["copy_s"], device["seconds"], device["copy_s"]) > 0
    assert host["gb"] > device["gb"], "whole tensors go to the device"


# The command


def test_without_a_gpu_it_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "figures.json")]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert "The acceptance measures a GPU of NVIDIA" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--teacher", "."], "A search needs a teacher and a text"),
        (["--parts", "search"], "A search needs a teacher and a text"),
        (["--teacher", ".", "--data", "nowhere.txt"], "A search reads teacher and text from the disk"),
        (["--minutes", "0"], "A measurement takes time"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: list[str], rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--toy", "--out", str(tmp_path / "figures.json"), *flags]) == 2
    assert rule in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_exception_ends_its_part_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench, _: Any) -> None:
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    def sound(bench: Bench, _: Any) -> None:
        bench.measure("all", lambda: {"seconds": 1.0})

    measures: dict[Any, Any] = {"memory": broken, "pace": sound}
    monkeypatch.setattr(command, "_MEASURES", measures)
    path = tmp_path / "figures.json"
    assert main(["--toy", "--out", str(path), "--parts", "pace", "memory"]) == 1
    parts = json.loads(path.read_text())["parts"]
    assert list(parts) == ["memory", "pace"], "the most telling first"
    message = "RuntimeError: CUDA error: an illegal memory access"
    assert (parts["memory"]["state"], parts["memory"]["failed"]) == ("failed", message)
    assert parts["pace"]["figures"][0]["seconds"] == 1.0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ", 1)[1].strip() == f"failed {message}"
    assert second.startswith("pace: all")


def test_a_part_gets_its_share_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[float, float]] = {}

    def noted(bench: Bench, _: Any) -> None:
        given[bench.part] = bench.left, bench.whole_left

    monkeypatch.setattr(command, "_MEASURES", dict.fromkeys(SHARES, noted))
    assert main(["--toy", "--minutes", "8", "--out", str(tmp_path / "figures.json")]) == 0
    assert list(given) == ["memory", "pace", "ranking", "cutting", "parity"], "no search without a teacher"
    assert given["memory"][0] == pytest.approx(480 * 5 / 13.5, rel=0.05)
    assert given["parity"][0] == pytest.approx(given["parity"][1]), "the last has all"
    assert given["memory"][1] == pytest.approx(480, rel=0.05)


# Findings


def test_the_file_is_whole_after_every_figure(findings: Findings) -> None:
    def written() -> Any:
        return json.loads(findings.path.read_text())

    assert written() == {"device": "none", "parts": {}}
    findings.begin("pace")
    findings.add("pace", "all", {"good": 1.23456789, "bad": math.nan, "path": Path("a"), "none": None})
    row = {"what": "all", "good": 1.23457, "bad": "nan", "path": "a", "none": None}
    assert written()["parts"]["pace"] == {"state": "running", "figures": [row]}
    findings.end("pace", 1.23)
    assert written()["parts"]["pace"] == {"state": "done", "figures": [row], "seconds": 1.2}
    assert [path.name for path in findings.path.parent.iterdir()] == ["figures.json"]
    assert findings.whole
    assert findings.table() == "pace: all  good 1.235, bad nan, path a, none -"


# A measurement that goes wrong


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (NotHereError("no torchao"), {"skipped": "no torchao"}),
        (OutOfTimeError(), {"skipped": "the time was used up on the way"}),
        (
            InputError("It has to fit", "it does not", "Take less"),
            {"refused": "It has to fit; it does not. Take less."},
        ),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), {"out_of_memory": "Tried to allocate 2 GiB"}),
        (ZeroDivisionError("by zero"), {"failed": "ZeroDivisionError: by zero"}),
    ],
)
def test_the_reason_is_kept_and_the_next_goes_on(bench: Bench, error: Exception, row: dict[str, str]) -> None:
    def wrong() -> dict[str, Any]:
        raise error

    bench.measure("one", wrong)
    bench.measure("other", lambda: {"seconds": 2.0})
    one, other = bench.findings.parts["memory"]["figures"]
    assert one == {"what": "one", **row}
    assert other["seconds"] == 2.0
    assert bench.findings.whole is not isinstance(error, ZeroDivisionError)


def test_nothing_begins_that_the_time_does_not_suffice_for(findings: Findings) -> None:
    findings.begin("memory")

    def skips(bench: Bench, seconds: float = 0.0) -> bool:
        return bench.attempt("it", lambda: True, seconds) is None

    assert not skips(Bench("memory", TOY, findings, 60.0, 60.0))
    assert skips(Bench("memory", TOY, findings, -1.0, 60.0)), "the part's"
    assert skips(Bench("memory", TOY, findings, 60.0, -1.0)), "everybody's"
    assert skips(Bench("memory", TOY, findings, 60.0, 50.0), 55.0)
    slow = Bench("memory", TOY, findings, 60.0, 0.3)
    slow.attempt("slow", lambda: time.sleep(0.2))
    assert skips(slow), "as long as the longest before"
    with pytest.raises(OutOfTimeError):
        Bench("memory", TOY, findings, 60.0, -1.0).tick()
