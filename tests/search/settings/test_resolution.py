"""From flags to a configuration, and every refusal before anything is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.scale import SCALES
from search.settings.teachers import LADDER
from space.axes.architecture import Axis
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.input_error import InputError


def flags(model: Path, **others: Any) -> Flags:
    return replace(Flags(budget="1M", model=(str(model),), device="cpu"), **others)


def refusal(one: Flags) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve(one)
    return caught.value


def test_a_budget_and_a_model_are_enough(demo_config: Path) -> None:
    found = resolve(flags(demo_config))
    config, scale = found.config, SCALES[0]
    assert found.teacher_parameters == 1_837_184
    assert (config.name, config.teacher, config.revision) == ("demo-config-1M", str(demo_config), "")
    assert (config.budget, config.tolerance) == (1_000_000, 0.02)
    assert found.space.budget == Budget(1_000_000, 0.02, value_bytes=4)
    expected = enumerate_space(found.axis_map, Budget(1_000_000, 0.02))
    assert list(found.space.architectures) == list(expected.architectures)
    assert config.data == ("HuggingFaceFW/fineweb-edu",)
    assert (config.block, config.batch_blocks) == (scale.block, scale.batch_blocks)
    assert config.calibration_blocks == scale.calibration_blocks
    assert config.validation_blocks == scale.validation_blocks
    assert config.distillation_blocks == scale.retrain_tokens // scale.block
    assert (config.objectives, config.sampler) == (("loss", "latency"), "nsga2")
    assert (config.search_tokens, config.hours) == (scale.search_tokens, 0.0)
    assert (config.rung_tokens, config.retrain_tokens) == ((12_288, 49_152), scale.retrain_tokens)
    assert (config.trials, config.rung_candidates) == (64, (32, 8))
    assert config.promote == scale.promote
    assert config.retrain_baselines
    assert (config.loss, config.temperature, config.states) == ("forward-kl", 1.0, ())
    assert (config.targets, config.schedule, config.benchmarks) == ("auto", "cosine", ())
    assert (config.phases, config.teacher_correction) == ((), 0)
    assert (config.storage, config.seed, config.device) == ("", 0, "cpu")
    assert not config.trust_remote_code
    assert found.retrainings == (scale.promote + 1, 3), "one of three baselines, and random weights"


def test_the_environment_names_a_storage_unless_a_flag_does(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://host/name")
    assert resolve(flags(demo_config, budget="60%")).config.storage == "postgresql://host/name"
    assert resolve(flags(demo_config, budget="60%", storage="x.journal")).config.storage == "x.journal"


def test_flags_win_over_the_scale(demo_config: Path) -> None:
    config = resolve(
        flags(
            demo_config,
            budget="60%",
            tolerance=0.05,
            data=("text.txt",),
            trials=6,
            rung_tokens=("4k", "8k", "20k"),
            retrain_tokens="1M",
            promote=9,
            objectives="loss,flops",
            sampler="gp",
            storage="x.journal",
            study_name="mine",
            seed=4,
            dtype="float32",
            retrain_baselines=False,
            trust_remote_code=True,
            correct_teacher="2M",
            loss="reverse-kl",
            temperature=2.0,
            states=("late", "late"),
            targets="live",
            schedule="wsd",
        )
    ).config
    assert (config.teacher_correction, config.loss, config.temperature) == (2_000_000, "reverse-kl", 2.0)
    assert (config.states, config.targets, config.schedule) == (("late",), "live", "wsd")
    assert (config.name, config.budget, config.tolerance) == ("mine", 1_102_310, 0.05)
    assert (config.data, config.storage, config.seed) == (("text.txt",), "x.journal", 4)
    assert (config.trials, config.rung_tokens, config.rung_candidates) == (6, (4000, 8000, 20_000), (5, 2, 1))
    assert (config.retrain_tokens, config.distillation_blocks) == (1_000_000, 7813)
    assert config.promote == 1, "no more than the last rung holds"
    assert (config.objectives, config.sampler, config.dtype) == (("loss", "flops"), "gp", "float32")
    assert (config.retrain_baselines, config.trust_remote_code) == (False, True)


def test_a_large_teacher_gets_large_blocks(qwen3_8b: Path) -> None:
    config = resolve(flags(qwen3_8b, budget="4B")).config
    assert (config.name, config.block, config.rung_candidates) == ("Qwen3-8B-4B", 4096, (40, 10))
    assert not config.retrain_baselines


def test_benchmarks_are_looked_up_before_anything_else(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    error = refusal(flags(demo_config, benchmarks=("winogrande",)))
    assert error.remedy == "Install it: pip install 'lm-eval>=0.4.13'"
    missing = refusal(flags(demo_config, benchmarks=("mine.yaml",)))
    assert missing.values == "there is no file mine.yaml"


def test_blocks_fit_into_the_context_and_into_the_smallest_work(
    demo_config: Path, tiny_teacher: Path
) -> None:
    assert resolve(flags(tiny_teacher, budget="70%", tolerance=0.1)).config.block == 64
    assert resolve(flags(demo_config, rung_tokens=("100",), retrain_tokens="100")).config.block == 100


def test_trials_are_no_more_than_architectures(demo_config: Path) -> None:
    found = resolve(flags(demo_config, tolerance=0.004))
    architectures = len(found.space.architectures)
    assert found.config.trials == found.config.rung_candidates[0] == architectures < 32


def test_the_embedded_teacher_is_the_default_and_stays_with_the_working_directory(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = demo_config
    known = replace(LADDER[0], id=str(embedded))
    for module in ("search.settings.teachers", "search.settings.resolution"):
        monkeypatch.setattr(f"{module}.EMBEDDED", embedded)
    monkeypatch.setattr("search.settings.teachers.LADDER", (known,))
    monkeypatch.chdir(embedded.parent)
    config = resolve(Flags(budget="55%")).config
    assert (config.name, config.teacher, config.data) == ("demo-55pct", embedded.name, ("stdlib",))


@pytest.mark.parametrize(
    ("asked", "amount", "unit"),
    [
        ({"budget": "60%", "budget_of": "non-embedding"}, 945_024, "non-embedding parameters"),
        ({"budget": "1M", "budget_of": "active"}, 1_000_000, "active parameters"),
        ({"budget": "4MB", "budget_of": "weights"}, 4_000_000, "bytes of weights"),
        (
            {"budget": "2MB", "budget_of": "weights", "budget_dtype": "bfloat16"},
            2_000_000,
            "bytes of weights",
        ),
        ({"budget": "50%", "budget_of": "kv-cache"}, 2048, "bytes of KV cache a token"),
        ({"budget": "1KiB", "budget_of": "kv-cache", "budget_dtype": "float16"}, 1024, "bytes of KV"),
    ],
)
def test_a_budget_may_be_of_other_things(
    asked: dict[str, Any], amount: int, unit: str, demo_config: Path
) -> None:
    """The demo: 2 × 1024 × 128 of the vocabulary; 8 layers × 2 × 4 heads × 16 × 4 bytes of cache a token."""
    found = resolve(flags(demo_config, **asked))
    assert found.config.budget == found.space.budget.amount == amount
    assert str(found.space.budget).startswith(f"{amount:,} {unit}")
    assert found.config.budget_of == asked["budget_of"]
    assert found.config.budget_dtype == asked.get("budget_dtype", "float32")
    assert found.config.name.endswith(f"-{asked['budget_of']}")


def test_axes_are_kept_and_limited(demo_config: Path) -> None:
    found = resolve(flags(demo_config, keep=("kv_heads",), sizes=("layers=6..8",)))
    assert (found.config.keep, found.config.sizes) == (("kv_heads",), ("layers=6..8",))
    assert found.space.values(Axis.KV_HEADS) == [found.axis_map.teacher.kv_heads]
    assert set(found.space.values(Axis.LAYERS)) <= {6, 7, 8}


@pytest.mark.parametrize("name", ["first-try", "60%", "Qwen3 8B", "ü"])
def test_a_name_may_be_any_folder(name: str, demo_config: Path) -> None:
    assert resolve(flags(demo_config, study_name=name)).config.name == name


@pytest.mark.parametrize("name", ["a/b", "/a", ".", "..", "a/", "../a"])
def test_a_name_that_is_no_folder_is_refused(name: str, demo_config: Path) -> None:
    assert str(refusal(flags(demo_config, study_name=name))) == (
        f"The name of a run has to be the name of one folder; {name!r} is none. Try --study-name first-try."
    )


def test_a_percentage_makes_a_name_without_percent(demo_config: Path) -> None:
    assert resolve(flags(demo_config, budget=" 60% ")).config.name == "demo-config-60pct"


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99", "meta", "", "hpu", "privateuseone", "xla"])
def test_a_device_that_is_not_here_is_refused(device: str, demo_config: Path) -> None:
    error = refusal(flags(demo_config, device=device))
    assert error.rule == "The device has to be one that PyTorch has here"
    assert error.values.startswith(f"{device!r} is not: ")
    assert error.remedy == "Leave --device out, or name one of cpu, cuda, cuda:1, mps"
    assert "\n" not in str(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_refused(demo_config: Path) -> None:
    assert "'cuda' is not: " in refusal(flags(demo_config, device="cuda")).values


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, **fields}


@pytest.mark.parametrize(
    ("change", "others", "message"),
    [
        (changed(), {"budget": "1.81M"}, "has to lie below the teacher's size; 1,810,000 parameters ±2%"),
        (
            changed(),
            {"budget": "4B"},
            "4,000,000,000 parameters ±2% was asked of a teacher of 1,837,184",
        ),
        (changed(), {"budget": "100%"}, "1,837,184 parameters ±2% was asked"),
        (changed(), {"budget": "10k"}, "At least one architecture has to lie within the budget's tolerance"),
        (
            changed(),
            {"budget": "8GB", "budget_of": "weights"},
            "8,000,000,000 bytes of weights ±2%",
        ),
        (
            changed(),
            {"keep": ("experts",)},
            "The axes of this teacher are hidden, mlp, heads",
        ),
        (changed(), {"sizes": ("hidden=4096",)}, "names 4096, and the teacher has 128"),
        (changed(), {"objectives": "loss,latncy"}, "Did you mean 'latency'"),
        (changed(), {"revision": ("main",)}, "Leave --revision out"),
        (changed(model_type="nonsense"), {}, "has the model_type nonsense"),
        (changed(quantization_config={"quant_method": "awq"}), {}, "is quantised (awq)"),
        (changed(model_type="t5", architectures=None), {}, "has an encoder and a decoder"),
    ],
)
def test_what_cannot_be_done_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    others: dict[str, Any],
    message: str,
    demo_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "teacher"
    directory.mkdir()
    config = json.loads((demo_config / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(change(config)))
    monkeypatch.chdir(tmp_path)
    error = refusal(flags(directory, **others))
    assert message in str(error)
    assert all((error.rule, error.values, error.remedy))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"], "nothing was made"
