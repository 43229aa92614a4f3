"""What ``--plan`` promises: exact counts from a config alone, nothing trained, nothing written."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from evaluators.metrics.pace import Pace
from search.planning.plan import TargetsRow, plan
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.settings.run_time import foretell
from search.storage.run_directory import RunDirectory
from space.counting.budget import Budget, BudgetText
from space.counting.counting import matrix_polynomial
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import baselines
from tests.search.synthetic import demo_map
from tests.warm_python import warm_run

ROOT = Path(__file__).resolve().parents[3]


@cache
def resolved_once(flags: Flags) -> Resolved:
    """What many plans are of; none of them changes it."""
    return resolve(flags)


def planned(model: Path, out: Path, budget: str = "4B", **others: object) -> tuple[str, dict[str, str]]:
    """The plan, and its rows by name."""
    resolved = resolved_once(Flags(budget=budget, model=(str(model),), device="cpu", **others))  # type: ignore[arg-type]
    return planned_of(resolved, out)


def planned_of(resolved: Resolved, out: Path) -> tuple[str, dict[str, str]]:
    """The plan, and its rows by name."""
    text = str(plan(resolved, RunDirectory(out / "name")))
    rows: dict[str, str] = {}
    for line in text.splitlines():
        name, value = line[:16].strip(), line[16:].strip()
        if name:
            rows[name] = value
        else:
            rows[list(rows)[-1]] += f"\n{value}"
    return text, rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parameters"), [("qwen3_8b", "8,190,735,360"), ("llama_8b", "8,030,261,248")]
)
def test_counts_are_exact(
    model: str, parameters: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory: Path = request.getfixturevalue(model)
    resolved = resolved_once(Flags(budget="4B", model=(str(directory),), device="cpu"))
    text, rows = planned_of(resolved, tmp_path)
    space = enumerate_space(resolved.axis_map, Budget(4_000_000_000, 0.02))
    assert f"{parameters} parameters" in text
    assert rows["budget"] == "4,000,000,000 parameters ±2%"
    assert rows["architectures"] == (
        f"{len(space):,}, from {min(space.parameters):,} to {max(space.parameters):,} parameters"
    )
    for origin, architecture in baselines(space, resolved.axis_map.teacher).items():
        counted = f"{space.parameters_of(architecture):,}"
        assert rows[origin] == f"{architecture.label}, {counted} parameters"
    assert list(tmp_path.iterdir()) == []


def test_work_is_counted_by_hand(demo_config: Path, tmp_path: Path) -> None:
    _, rows = planned(
        demo_config, tmp_path, "1M", trials=32, rung_tokens=("64k",), retrain_tokens="320k", promote=2
    )
    assert rows["rung 0"] == "32 candidates, loss straight after pruning"
    assert rows["rung 1"] == "16 candidates, 64,000 tokens each"
    assert rows["held back"] == "256,000 tokens, for more candidates where a rung misleads"
    assert rows["retraining"] == "3 models, 320,000 tokens each; 3 for comparison, 80,000"
    # 16 × 64,000 + 6 × 320,000 trained on
    assert rows["tokens"] == "2,224,000 trained on"
    # 320,000 × 128 × 2 bytes, and a kB for each of 2500 blocks
    assert rows["targets"] == "320,000 tokens as hidden states, 84.5 MB"
    # of 8 layers, and of the stream at 17 norms: 4 × (8 × (384² + 128²) + 17 × 128²) bytes
    assert rows["repairs"] == (
        "least-squares\nmoments of 32,768 tokens, 85 for each of the 384 inputs of the largest system, "
        "gathered as the teacher is ranked, 6.36 MB on disk"
    )
    # that, 5 models of 4 MB, a checkpoint of 16 MB, the teacher of 7.3 MB sorted in two bases
    assert rows["disk"] == "142 MB"
    assert rows["run directory"] == str(tmp_path / "name")


def test_arithmetic_is_six_operations_a_weight_and_token_and_two_of_the_teacher(
    demo_config: Path, tmp_path: Path
) -> None:
    _, rows = planned(
        demo_config,
        tmp_path,
        "1M",
        rung_tokens=("64k",),
        retrain_tokens="320k",
        retrain_baselines=False,
        promote=1,
    )
    found = re.fullmatch(r"(\S+) FLOPs \(10\^(\S+)\)", rows["arithmetic"])
    assert found is not None
    teacher = 1_837_184 - 1024 * 128 - 17 * 128  # all but the embedding table and the norms
    flops, trained, cached = float(found[1]), 32 * 64_000 + 320_000, 320_000
    student = (flops - 2 * teacher * cached) / (6 * trained)
    assert 0.8e6 < student < 1e6, "the largest student's matrices"
    assert float(found[2]) == pytest.approx(math.log10(flops), abs=0.05)


@pytest.mark.parametrize(
    ("others", "free", "words", "kept", "read"),
    [
        ({}, 10**9, "320,000 tokens as hidden states, 84.5 MB", 84_480_000, 320_000),
        ({"targets": "sampled"}, 10**9, "320,000 tokens as drawn tokens, 52.2 MB", 52_160_000, 320_000),
        # of 64,000 tokens alone, 500 blocks
        (
            {"loss": "mse"},
            10**8,
            "64,000 tokens as hidden states, 16.9 MB; in retraining the teacher runs live",
            16_896_000,
            64_000 + 6 * 320_000,
        ),
        ({}, 10**6, "the teacher runs live", 0, 16 * 64_000 + 6 * 320_000),
        ({"targets": "live"}, 10**9, "the teacher runs live", 0, 16 * 64_000 + 6 * 320_000),
        ({"loss": "cross-entropy"}, 10**9, "none: the loss asks no teacher", 0, 0),
    ],
)
def test_targets_are_counted_by_hand(
    others: dict[str, str],
    free: int,
    words: str,
    kept: int,
    read: int,
    demo_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search.planning.plan.free_bytes", lambda path: free)
    run = {"trials": 32, "rung_tokens": ("64k",), "retrain_tokens": "320k", "promote": 2}
    resolved = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu", **run, **others))  # type: ignore[arg-type]
    row = TargetsRow(resolved, RunDirectory(tmp_path))
    assert (row.words, row.size, row.read(16 * 64_000, 6 * 320_000)) == (words, kept, read)
    assert f"{words}\n" in str(plan(resolved, RunDirectory(tmp_path)))


@pytest.mark.parametrize(("budget", "unit"), [("1M", "MB"), ("4B", "GB"), ("40B", "TB")])
def test_disk_has_a_unit(budget: str, unit: str, demo_config: Path, tmp_path: Path) -> None:
    resolved = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu"))
    amount = round(BudgetText.parse(budget).amount)
    space = replace(resolved.space, parameters=np.full(len(resolved.space), amount))
    text = str(plan(replace(resolved, space=space), RunDirectory(tmp_path)))
    assert re.search(rf"^disk +[\d.]+ {unit}$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["[bold]a[b][/red]", ":smile:"])
def test_names_are_shown_as_they_are(name: str, demo_config: Path, tmp_path: Path) -> None:
    text, _ = planned(demo_config, tmp_path / name, "1M")
    assert name in text


def test_long_paths_are_not_cut(demo_config: Path, tmp_path: Path) -> None:
    text, _ = planned(demo_config, tmp_path / ("long" * 40), "1M")
    assert str(tmp_path / ("long" * 40) / "name") in text


def test_a_plan_has_no_colours_even_where_they_are_forced(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in planned(demo_config, tmp_path, "1M")[0]


def test_every_size_of_every_axis_is_named(demo_config: Path, tmp_path: Path) -> None:
    _, rows = planned(demo_config, tmp_path, "1M")
    teacher = demo_map().teacher
    assert rows["sizes"].splitlines() == [
        f"hidden 72, 80 … 128 of {teacher.hidden}",
        "heads 4, 8 of 8",
        "kv_heads 2, 4 of 4",
        "layers 4, 5, 6, 7, 8 of 8",
        "mlp 112 to 384 of 384, solved from the budget",
    ]


def test_the_whole_command_answers_trains_nothing_and_writes_nothing(
    demo_config: Path, tmp_path: Path
) -> None:
    """For a card that need not be here, so that no host is too small for it."""
    out = tmp_path / "runs"
    command = [sys.executable, "-m", "search.run", "--budget", "1M", "--device-memory", "80GB", "--plan"]
    done = warm_run([*command, "--model", str(demo_config), "--out", str(out)], cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1,837,184 parameters" in done.stdout
    assert re.search(r"^time +not known: the card .* is not here to be timed$", done.stdout, re.MULTILINE)
    assert str(out / f"{demo_config.name}-1M") in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_where_no_student_can_be_timed_the_arithmetic_tells(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.planning.plan.pace_of", lambda *_: Pace(0.2, 1.6, 0.5, timed=False))
    _, rows = planned(demo_config, tmp_path, "1M")
    assert re.match(r"about [\d.,]+ h of one worker: ", rows["time"])
    assert rows["time"].splitlines()[1] == (
        "a student learns 0.20 tokens a second on cpu, by its arithmetic and the rate of a matrix product"
    )


def test_the_correction_of_a_teacher_is_counted(demo_config: Path, tmp_path: Path) -> None:
    """6 for each weight in its matrices and token; 16 bytes for each parameter."""
    _, before = planned(demo_config, tmp_path, "1M")
    _, rows = planned(demo_config, tmp_path, "1M", correct_teacher="10M")
    resolved = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu"))
    weights = matrix_polynomial(resolved.axis_map).of(resolved.axis_map.teacher)
    assert rows["correction"] == "10,000,000 tokens that the teacher is trained on"
    assert "correction" not in before
    added = float(rows["arithmetic"].split()[0]) - float(before["arithmetic"].split()[0])
    assert added == pytest.approx(6 * weights * 10_000_000, rel=0.05)
    (megabytes, more) = (float(one["disk"].split()[0]) for one in (before, rows))
    assert more - megabytes == pytest.approx(16 * resolved.teacher_parameters / 1e6, rel=0.05)


def test_hours_are_counted_by_hand(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(1000.0, 16_384.0, 0.5, timed=True)
    monkeypatch.setattr("search.planning.plan.pace_of", lambda *_: pace)
    flags = Flags(
        budget="1M",
        model=(str(demo_config),),
        device="cpu",
        dtype="float32",
        basis="coordinate",
        trials=32,
        rung_tokens=("64k",),
        retrain_tokens="320k",
        promote=2,
    )
    resolved = resolved_once(flags)
    found = foretell(resolved.config, resolved.work, pace, 320_000)
    # One pass over 128 blocks of 128 tokens takes a second, and the latency half of one.
    assert found.search == pytest.approx(32 * 1.5 + 16 * (64 + 1))
    assert found.reserve == pytest.approx(16 * 64 / 4)
    assert found.retraining == pytest.approx(3 * (320 + 80) + 6 * 7)
    matrices = matrix_polynomial(resolved.axis_map).of(resolved.axis_map.teacher)
    students = [matrix_polynomial(resolved.axis_map).of(one) for one in resolved.space.architectures]
    larger = matrices / (sum(students) / len(students))
    # The targets; over 256 blocks a pass for the widths, and one without the head to keep the states at 8
    # layers, then half of 7 layers behind each of them, and the head 8 times.
    head = 1024 * 128 / matrices
    assert resolved.axis_map.config.vocab_size == 1024
    apart = (1 - head) * (1 + 7 / 2) + 8 * head
    # For repairs, the products of what 8 layers read in two places, beside the pass for the widths.
    products = 8 * (384**2 + 128**2) / matrices
    assert found.ranking == pytest.approx(larger * (320_000 + 32_768 * (1 + apart + products)) / 16_384)
    told = plan(resolved, RunDirectory(tmp_path)).as_dict()
    assert told["seconds"]["total"] == pytest.approx(found.total, abs=0.1)
    assert json.loads(json.dumps(told)) == told


def test_both_bases_are_ranked_and_tried(demo_config: Path) -> None:
    resolved = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu"))
    found = foretell(resolved.config, resolved.work, Pace(1000.0, 1e9, 0.0, timed=True), 0)
    # The one baseline that cuts hidden, in each basis.
    assert found.ranking == pytest.approx(2 * 12.288, rel=0.01)


def test_finding_the_learning_rate_is_counted(demo_config: Path, tmp_path: Path) -> None:
    _, rule = planned(demo_config, tmp_path, "1M", rate="rule")
    _, found = planned(demo_config, tmp_path, "1M", rate="auto")
    assert rule["learning rate"] == "its peak is the rule's for the student's size"
    assert found["learning rate"] == (
        "its peak is found by about 4 trainings of 12,288 tokens each, in each of two bases"
    )
    tokens = [int(rows["tokens"].split()[0].replace(",", "")) for rows in (rule, found)]
    assert tokens[1] - tokens[0] == 8 * 12_288
