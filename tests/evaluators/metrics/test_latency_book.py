from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PretrainedConfig

from evaluators.metrics.latency import Latency, LatencyCache, Workload, device_name, latency_key
from space.axes.architecture import Architecture
from space.cutting.extraction import student_config
from space.discovery.discovery import discover
from tests.evaluators.tiny_models import tiny_config, tiny_model

LATENCY, OTHER = Latency(20.5, 0.1 + 0.2, 32), Latency(1.0, 1 / 3, 32)
CPU = torch.device("cpu")


def never() -> Latency:
    raise AssertionError("measured again")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "latencies.jsonl"


def test_a_latency_is_measured_once_and_read_by_later_runs(path: Path) -> None:
    book, measured = LatencyCache(path), list[Latency]()

    def measure() -> Latency:
        measured.append(LATENCY)
        return LATENCY

    assert book.look_up("a", measure) == LATENCY
    assert book.look_up("a", measure) == LATENCY
    assert book.look_up("b", lambda: OTHER) == OTHER
    later = LatencyCache(path)
    assert later.look_up("a", never) == LATENCY
    assert later.look_up("b", never) == OTHER
    assert len(measured) == 1


def test_what_was_written_first_holds(path: Path) -> None:
    """Two processes measured the same: whoever reads later sees what the first one saw."""
    one, other = LatencyCache(path), LatencyCache(path)
    one.look_up("a", lambda: LATENCY)
    other.look_up("a", lambda: OTHER)
    assert LatencyCache(path).look_up("a", never) == LATENCY


def test_a_measurement_that_fails_is_not_written(path: Path) -> None:
    with pytest.raises(AssertionError, match="measured again"):
        LatencyCache(path).look_up("a", never)
    assert LatencyCache(path).look_up("a", lambda: LATENCY) == LATENCY


@pytest.mark.parametrize("left", range(0, 80, 13))
def test_a_line_that_was_cut_off_costs_no_other(path: Path, left: int) -> None:
    book = LatencyCache(path)
    book.look_up("a", lambda: LATENCY)
    whole = path.read_bytes()
    book.look_up("b", lambda: OTHER)
    path.write_bytes(path.read_bytes()[: len(whole) + left])

    again = LatencyCache(path)
    assert again.look_up("a", never) == LATENCY
    again.look_up("c", lambda: OTHER)
    assert LatencyCache(path).look_up("c", never) == OTHER


RUBBISH = ["", "{", "[]", "null", "7", '"text"', "{}", '{"key": "a"}', '{"key": "a", "speed": 3}', "\0\0\0"]


@pytest.mark.parametrize("line", RUBBISH)
def test_a_line_that_is_no_entry_is_as_if_it_were_not_there(path: Path, line: str) -> None:
    LatencyCache(path).look_up("b", lambda: OTHER)
    path.write_text(f"{line}\n{path.read_text()}\n{line}")
    book = LatencyCache(path)
    assert book.look_up("a", lambda: LATENCY) == LATENCY
    assert book.look_up("b", never) == OTHER


def test_bytes_that_are_no_text_are_as_if_they_were_not_there(path: Path) -> None:
    LatencyCache(path).look_up("b", lambda: OTHER)
    path.write_bytes(b"\xff\xfe\xfa\n" + path.read_bytes())
    assert LatencyCache(path).look_up("b", never) == OTHER


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.integers(1, 10**6))
def test_figures_are_read_as_they_were_measured(prefill: float, decode: float, answer: int) -> None:
    latency = Latency(prefill, decode, answer)
    line = json.dumps({"key": "a", **vars(latency)})
    book = LatencyCache(Path("/nowhere/at/all"))
    book._read(line)
    assert book.look_up("a", never) == latency


# Keys

TEACHER = tiny_config()


def key(
    config: PretrainedConfig = TEACHER,
    reference: PretrainedConfig = TEACHER,
    dtype: torch.dtype = torch.float32,
    load: Workload | None = None,
) -> str:
    return latency_key(config, reference, CPU, dtype, load or Workload())


SIZES: list[dict[str, Any]] = [
    {"hidden_size": 12},
    {"intermediate_size": 20},
    {"num_attention_heads": 8},
    {"num_key_value_heads": 1},
    {"num_hidden_layers": 2},
    {"head_dim": 4},
    {"vocab_size": 38},
    {"tie_word_embeddings": True},
]


def test_every_size_matters() -> None:
    keys = {key(tiny_config(**changes)) for changes in [{}, *SIZES]}
    assert len(keys) == len(SIZES) + 1


def test_the_teacher_timed_beside_matters() -> None:
    assert len({key(reference=tiny_config(**changes)) for changes in [{}, *SIZES]}) == len(SIZES) + 1


CIRCUMSTANCES: dict[str, Callable[[], str]] = {
    "another family": lambda: key(tiny_config("mistral")),
    "another dtype": lambda: key(dtype=torch.bfloat16),
    "another batch": lambda: key(load=Workload(batch=2)),
    "another prompt": lambda: key(load=Workload(prompt=64)),
    "another answer": lambda: key(load=Workload(answer=64)),
}


@pytest.mark.parametrize("other", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES.keys())
def test_circumstances_matter(other: Callable[[], str]) -> None:
    assert other() != key()


@pytest.mark.parametrize(
    "patch",
    [
        ("torch.get_num_threads", lambda: 77),
        ("torch.__version__", "99.0"),
        ("transformers.__version__", "99.0"),
        ("platform.node", lambda: "another-host"),
        ("os.cpu_count", lambda: 77),
    ],
    ids=lambda patch: patch[0],
)
def test_machine_and_libraries_matter(monkeypatch: pytest.MonkeyPatch, patch: tuple[str, object]) -> None:
    before = key()
    monkeypatch.setattr(f"evaluators.metrics.latency.{patch[0]}", patch[1])
    assert key() != before


def test_weights_and_the_place_of_the_config_do_not_matter(tmp_path: Path) -> None:
    one, other = tiny_model(seed=1), tiny_model(seed=2)
    one.save_pretrained(tmp_path)
    loaded = PretrainedConfig.from_pretrained(tmp_path).to_dict()
    assert {"architectures", "transformers_version"} <= loaded.keys()
    again = type(one.config).from_pretrained(tmp_path)
    assert key(one.config) == key(other.config) == key(again) == key()


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_which_layers_are_kept_does_not_matter(model_type: str) -> None:
    axis_map = discover(tiny_config(model_type)).axis_map
    student = Architecture(hidden=8, mlp=16, heads=2, kv_heads=1, layers=2)
    keys = {key(student_config(axis_map, student, kept)) for kept in ([0, 1], [0, 2], [1, 2])}
    assert len(keys) == 1


def test_the_device_is_named_for_people() -> None:
    assert " cores, on " in device_name(CPU)
