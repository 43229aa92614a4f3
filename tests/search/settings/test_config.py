"""A configuration survives its file, and a file that is none is told from one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.settings.config import RunConfig
from tests.search.synthetic import run_config

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)
TOKENS = st.lists(st.integers(1, 10**12), min_size=1, max_size=4).map(tuple)
SOME_FIELDS = st.fixed_dictionaries(
    {
        "name": TEXT,
        "teacher": TEXT,
        "budget": st.integers(1, 10**13),
        "tolerance": st.floats(0, 0.5, exclude_min=True),
        "objectives": st.lists(st.sampled_from(["loss", "latency", "flops"]), max_size=3).map(tuple),
        "rung_tokens": TOKENS,
        "rung_candidates": TOKENS,
        "retrain_baselines": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@given(SOME_FIELDS)
def test_what_is_written_is_read(fields: dict[str, Any]) -> None:
    import tempfile

    config = run_config(**fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(config.to_toml().encode())
        assert RunConfig.load(path) == config
        assert config.differences(RunConfig.load(path)) == []


def test_every_field_is_in_the_file() -> None:
    text = run_config().to_toml()
    assert all(f"\n{name} = " in f"\n{text}" for name in vars(run_config()))


@pytest.mark.parametrize(
    "tear",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text + 'colour = "red"\n',
        lambda text: text.replace("seed = 0\n", ""),
        lambda text: text + "\x00",
        lambda text: "what is this?",
    ],
    ids=["torn", "empty", "of a later version", "of an earlier version", "no text", "no TOML"],
)
def test_a_file_that_is_no_configuration_is_told(tear: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(tear(run_config().to_toml()))
    with pytest.raises(ValueError, match=r"."):
        RunConfig.load(path)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ValueError, match="utf-8"):
        RunConfig.load(path)


def test_differences_name_both_values() -> None:
    config = run_config()
    other = replace(config, seed=1, rung_tokens=(1,))
    assert other.differences(config) == ["rung_tokens is (1,), was (1000, 2000)", "seed is 1, was 0"]


def test_rungs_are_counted_with_rung_0() -> None:
    assert run_config().rungs == 3
    assert run_config(rung_tokens=(5,)).rungs == 2
