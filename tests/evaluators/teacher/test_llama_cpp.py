"""Students as llama.cpp's converter writes them to GGUF, read back: docs/deploy.md has the table."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from space.axes.architecture import Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.verification.contract import random_ranking
from tests.converted import converted, let_transformers_read
from tests.evaluators.teacher.checkpoints import CONFIG, load, logits, written
from tests.evaluators.tiny_models import tiny_model

SMALLER = {Axis.HIDDEN: 24, Axis.MLP: 40, Axis.KV_HEADS: 1, Axis.HEADS: 2}
#: The class has no head size of its own, so heads follow hidden.
COUPLED = "gpt_neox"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=["mistral", "qwen2", "qwen3", "gemma3_text", "phi3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def student(kind: str, tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> Path:
    return cut(kind, tmp_path_factory.mktemp(kind), byte_tokenizer)


def cut(kind: str, folder: Path, tokenizer: Tokenizer) -> Path:
    """A student as a run writes it: narrower, with fewer heads and neurons than its teacher."""
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    teacher = tiny_model(kind, vocab_size=257, hidden_size=32, intermediate_size=48, **tokens)
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    settings = folder / "teacher" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    axis_map = discover(teacher.config).axis_map
    ranking = random_ranking(axis_map, 0)
    sizes = axis_map.complete({axis: size for axis, size in SMALLER.items() if axis in axis_map.free})
    tensors = saved_tensors(load(folder / "teacher").model, axis_map)
    model = extract(sort_by_importance(tensors, axis_map, ranking), axis_map, ranking, sizes)
    return written(model, folder / "teacher", folder / "student")


@pytest.fixture(scope="module")
def in_gguf(student: Path) -> Path:
    return converted(student, student.parent, any_tokenizer=True)


def read(path: Path, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    return model


def test_its_sizes_are_the_student_s(kind: str, student: Path, in_gguf: Path) -> None:
    config = json.loads((student / CONFIG).read_text())
    assert config["hidden_size"] != config["num_attention_heads"] * config["head_dim"]
    fields = import_module("gguf").GGUFReader(in_gguf).fields
    found = {name.partition(".")[2]: field.contents() for name, field in fields.items()}
    assert found["embedding_length"] == config["hidden_size"] == 24
    assert found["feed_forward_length"] == config["intermediate_size"] == 40
    assert found["attention.head_count"] == config["num_attention_heads"] == 2
    assert found["attention.head_count_kv"] == config["num_key_value_heads"] == 1
    head_size = {"key_length": found.get("attention.key_length"), "rope": found.get("rope.dimension_count")}
    if kind == "phi3":  # the converter divides hidden by heads, which is not the student's head size
        assert head_size == {"key_length": None, "rope": 12}
    else:
        assert head_size["key_length"] == config["head_dim"] == 8


def test_read_back_it_gives_the_same_logits(
    kind: str, student: Path, in_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' reader, which takes the head size of qwen2 and qwen3 from the config alone."""
    let_transformers_read(monkeypatch)
    ours = read(student)
    knows_sizes = kind in ("mistral", "gemma3_text")
    config = {} if knows_sizes else {"config": ours.config}
    theirs = read(in_gguf.parent, gguf_file=in_gguf.name, **config)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=0)


def test_gpt_neox_is_refused_as_its_teacher_is(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """The converter asks the installed transformers for a field that transformers 5 no longer has."""
    student = cut(COUPLED, tmp_path, byte_tokenizer)
    for model in (student, student.parent / "teacher"):
        with pytest.raises(ValueError, match="KeyError: 'rotary_pct'"):
            converted(model, tmp_path, any_tokenizer=True)
