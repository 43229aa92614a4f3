"""Every preset that ships can be used as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.settings.command_line import load_preset, read_flags
from search.settings.config import RunConfig
from search.settings.flag_rules import check_flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.settings.teachers import EMBEDDED
from space.axes.architecture import Architecture

STUDIES = Path(__file__).resolve().parents[3] / "studies"
PRESETS = sorted(STUDIES.rglob("*.toml"))


def resolved(name: str, model: Path) -> Resolved:
    return resolve(replace(load_preset(STUDIES / "presets" / name), model=(str(model),)))


@pytest.mark.parametrize("path", PRESETS, ids=[str(path.relative_to(STUDIES)) for path in PRESETS])
def test_it_loads_and_keeps_every_rule(path: Path) -> None:
    check_flags(load_preset(path))
    assert replace(read_flags([f"--preset={path}"]), preset=None) == load_preset(path)


@pytest.mark.parametrize("path", PRESETS, ids=[str(path.relative_to(STUDIES)) for path in PRESETS])
def test_it_says_how_to_use_it(path: Path) -> None:
    assert f"python -m search.run --preset {path.relative_to(STUDIES.parent)}" in path.read_text()


def test_the_presets_are_found() -> None:
    shipped = {"quick.toml", "demo.toml", "llama_3_1_8b_to_4b.toml", "minitron_4b_space.toml"}
    assert shipped <= {path.name for path in PRESETS}


def test_quick_is_one_short_rung_and_one_retraining(demo_config: Path) -> None:
    assert load_preset(STUDIES / "presets" / "quick.toml").model == ()
    found = resolved("quick.toml", demo_config)
    assert found.config.budget == 1_000_000
    assert (found.config.trials, found.config.rung_candidates, found.config.rung_tokens) == (8, (4,), (8000,))
    assert (found.config.retrain_tokens, found.retrainings) == (16_000, (1, 0))
    assert str(EMBEDDED) not in (STUDIES / "presets" / "quick.toml").read_text()


def test_llama_has_the_numbers_of_the_papers(llama_8b: Path) -> None:
    preset = load_preset(STUDIES / "presets" / "llama_3_1_8b_to_4b.toml")
    assert preset.model == ("meta-llama/Llama-3.1-8B",)
    found = resolved("llama_3_1_8b_to_4b.toml", llama_8b)
    config: RunConfig = found.config
    assert found.teacher_parameters == 8_030_261_248
    assert (config.budget, config.tolerance) == (4_000_000_000, 0.05)
    assert (config.rung_tokens, config.rung_candidates) == ((450_000_000, 1_800_000_000), (32, 8))
    assert (config.retrain_tokens, config.promote) == (94_000_000_000, 2)
    assert len(found.space) == 665, "as the preset says"


@pytest.mark.slow
def test_the_first_paper_s_4b_space_holds_its_18_candidates(nemotron_15b: Path) -> None:
    found = resolved("minitron_4b_space.toml", nemotron_15b)
    assert f"{found.teacher_parameters / 1e9:.2f}" == "15.63"
    assert len(found.space) == found.config.trials == 18, "as the paper says"
    assert Architecture(3072, 9216, 24, 8, 32) in found.space.architectures, "the published Minitron 4B"
    assert (found.config.keep, found.config.sizes[0]) == (("kv_heads",), "hidden=2560,3072,3584,4096,4608")
