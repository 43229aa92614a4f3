from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from search.settings import resolution
from search.settings.flags import Flags
from search.settings.teachers import (
    EMBEDDED,
    LADDER,
    OPEN_CORPUS,
    OPEN_MIXTURE,
    STANDARD_LIBRARY,
    KnownTeacher,
    default_texts,
    short_name,
    teacher_for,
)
from space.axes.axis_map import build
from space.counting.budget import BudgetText, Measure
from space.counting.counting import parameter_polynomial
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from studies.demo.train import CONFIG


def smol(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
    )


def qwen3(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


CONFIGS: dict[str, PretrainedConfig] = {
    str(EMBEDDED): CONFIG,
    "HuggingFaceTB/SmolLM2-135M": smol(576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-360M": smol(960, 2560, 32, 15, 5),
    "Qwen/Qwen3-0.6B": qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-4B": qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen3-14B": qwen3(5120, 17408, 40, 40, tied=False),
    "Qwen/Qwen3-32B": qwen3(5120, 25600, 64, 64, tied=False),
}


def test_the_ladder_rises() -> None:
    assert [known.id for known in LADDER] == list(CONFIGS)
    assert [known.parameters for known in LADDER] == sorted({known.parameters for known in LADDER})


@pytest.mark.parametrize("known", LADDER, ids=[Path(known.id).name for known in LADDER])
def test_every_known_teacher_has_the_size_stated(known: KnownTeacher) -> None:
    assert sum(tensor.numel() for tensor in build(CONFIGS[known.id]).parameters()) == known.parameters


#: A Llama with a tied head and a Qwen without; the others differ from these in sizes, or in both.
_TOLD_APART = ("demo", "SmolLM2-135M", "Qwen3-8B")


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(known, marks=[pytest.mark.slow] * (short_name(known.id) not in _TOLD_APART))
        for known in LADDER
    ],
    ids=[Path(known.id).name for known in LADDER],
)
def test_its_axes_count_the_same(known: KnownTeacher) -> None:
    axis_map = verified_axis_map(CONFIGS[known.id])
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == known.parameters


@pytest.mark.parametrize(
    ("budget", "teacher"),
    [
        ("1M", str(EMBEDDED)),
        ("60%", str(EMBEDDED)),
        ("99.9%", str(EMBEDDED)),
        ("1469747", str(EMBEDDED)),  # 1.25 times this is one less than the embedded teacher has
        ("1469748", "HuggingFaceTB/SmolLM2-135M"),
        ("100M", "HuggingFaceTB/SmolLM2-135M"),
        ("135M", "HuggingFaceTB/SmolLM2-360M"),
        ("350M", "Qwen/Qwen3-0.6B"),
        ("1B", "Qwen/Qwen3-1.7B"),
        ("3B", "Qwen/Qwen3-4B"),
        ("4B", "Qwen/Qwen3-8B"),
        ("8B", "Qwen/Qwen3-14B"),
        ("20B", "Qwen/Qwen3-32B"),
        ("26B", "Qwen/Qwen3-32B"),
    ],
)
def test_a_budget_picks_its_teacher(budget: str, teacher: str) -> None:
    assert teacher_for(BudgetText.parse(budget)) == teacher


@given(st.integers(1, 26_209_698_611))
def test_it_is_the_smallest_of_at_least_one_and_a_quarter_times_the_budget(parameters: int) -> None:
    sizes = {known.id: known.parameters for known in LADDER}
    picked = teacher_for(BudgetText(parameters, relative=False))
    assert sizes[picked] >= 1.25 * parameters
    assert not any(1.25 * parameters <= size < sizes[picked] for size in sizes.values())


def test_a_budget_in_bytes_needs_a_named_teacher() -> None:
    with pytest.raises(InputError) as refusal:
        teacher_for(BudgetText.parse("8GB", Measure.WEIGHTS), Measure.WEIGHTS)
    assert str(refusal.value) == (
        "A budget in bytes needs a teacher that is named; 8GB of weights was asked, and no --model. "
        "Name the teacher with --model, or write the budget in parameters or as a percentage."
    )
    assert teacher_for(BudgetText.parse("50%", Measure.KV_CACHE), Measure.KV_CACHE) == LADDER[0].id


@pytest.mark.parametrize(
    ("budget", "spoken"), [("27B", "27B"), ("70B", "70B"), ("1T", "1T"), ("26209698612", "26.2B")]
)
def test_a_budget_beyond_every_known_teacher_is_refused(budget: str, spoken: str) -> None:
    with pytest.raises(InputError) as refusal:
        teacher_for(BudgetText.parse(budget))
    assert str(refusal.value) == (
        f"A known teacher has to have at least 1.25 times the parameters of the budget; {spoken} was asked, "
        "and the largest, Qwen/Qwen3-32B, has 32.8B. Name a larger teacher with --model."
    )


def test_the_embedded_teacher_reads_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = tmp_path / "demo" / "teacher"
    embedded.mkdir(parents=True)
    monkeypatch.setattr("search.settings.teachers.EMBEDDED", embedded)
    monkeypatch.chdir(tmp_path)
    assert default_texts(str(embedded)) == default_texts("demo/teacher") == (STANDARD_LIBRARY,)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert default_texts(str(tmp_path)) == (OPEN_CORPUS,)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert default_texts(str(tmp_path)) == OPEN_MIXTURE
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert default_texts(str(tmp_path)) == OPEN_MIXTURE


def test_runs_are_named_after_the_last_part() -> None:
    assert short_name(str(EMBEDDED)) == "demo"
    assert short_name("Qwen/Qwen3-8B") == "Qwen3-8B"
    assert short_name("models/mine/") == "mine"
    assert short_name("/") == "teacher"


def test_a_gguf_file_is_read_as_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(resolution, "directory_of_gguf", lambda *_: EMBEDDED)
    (training,) = resolution.teachers_named(Flags(budget="1M", model=(str(file),)))
    assert training.phases[-1].id == str(EMBEDDED)
