"""What is written is the teacher's in all but the weights: settings, tokenizer, templates, dtype, shards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from evaluators.teacher import load_teacher
from evaluators.teacher.writing import write_directory
from tests.evaluators.tiny_models import same_weights, tiny_model

SIZES = {"hidden_size", "num_hidden_layers", "intermediate_size"}
#: What transformers notes of how it loaded a tokenizer.
OF_LOADING = {"is_local", "local_files_only"}
CHAT = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHATS: dict[str, str | dict[str, str]] = {"one": CHAT, "named": {"default": CHAT, "tool_use": f"T{CHAT}"}}


def write_teacher(
    path: Path,
    plain: PreTrainedTokenizerFast,
    dtype: torch.dtype = torch.float32,
    chat: str | dict[str, str] = CHATS["named"],
    **saving: Any,
) -> None:
    """A teacher with settings, tokens and templates of its own, as transformers writes it."""
    tokenizer = copy.deepcopy(plain)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": ["<|turn|>"]})
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = chat
    model = tiny_model(vocab_size=264, bos_token_id=0, eos_token_id=[0, 258])
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, bos_token_id=0, eos_token_id=[0, 258], pad_token_id=257
    )
    model.to(dtype).save_pretrained(path, **saving)  # type: ignore[arg-type]
    tokenizer.save_pretrained(path)


def write_student(teacher: Path, path: Path, **saving: Any) -> torch.nn.Module:
    """What a run does with a student of a smaller size."""
    loaded = load_teacher(str(teacher), revision=None, device=torch.device("cpu"), dtype=torch.float32)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    student = tiny_model("llama", vocab_size=264, bos_token_id=0, eos_token_id=[0, 258], seed=1, **sizes)
    student.generation_config = loaded.model.generation_config
    write_directory(student, loaded.tokenizer, loaded.stored_dtype, path, source=loaded.directory, **saving)
    return student


def fields(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def names(directory: Path) -> set[str]:
    return {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_but_sizes_and_weights_is_the_teacher_s_field_by_field(
    dtype: torch.dtype, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer, dtype)
    write_student(teacher, student)
    assert names(student) == names(teacher)
    assert "additional_chat_templates/tool_use.jinja" in names(student)
    for name in names(teacher) - {"config.json", "tokenizer_config.json", "model.safetensors"}:
        assert (student / name).read_bytes() == (teacher / name).read_bytes(), name
    mine, theirs = (fields(one / "config.json") for one in (student, teacher))
    assert {key for key in mine | theirs if mine.get(key) != theirs.get(key)} == SIZES
    assert mine["dtype"] == str(dtype).removeprefix("torch.")
    mine, theirs = (fields(one / "tokenizer_config.json") for one in (student, teacher))
    assert {key for key in mine | theirs if mine.get(key) != theirs.get(key)} <= OF_LOADING
    assert mine["extra_special_tokens"] == ["<|turn|>"]
    assert fields(student / "generation_config.json")["temperature"] == 0.6
    with safe_open(student / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118


@pytest.mark.parametrize("kind", CHATS)
def test_a_template_is_applied_as_the_teacher_s_is(
    kind: str, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer, chat=CHATS[kind])
    write_student(teacher, student)
    theirs: Any = AutoTokenizer.from_pretrained(teacher)
    written: Any = AutoTokenizer.from_pretrained(student)
    assert written.chat_template == CHATS[kind]
    talk = [{"role": "user", "content": "a <tool>"}]
    ids = written.apply_chat_template(talk)["input_ids"]
    assert ids == theirs.apply_chat_template(talk)["input_ids"]
    assert written.convert_tokens_to_ids(["<|turn|>", "<tool>"]) == [258, 259]
    assert {258, 259} <= set(ids)


def test_a_teacher_that_keeps_its_template_in_its_config_keeps_it(
    byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As it was done before templates had files of their own."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer)
    (teacher / "chat_template.jinja").unlink()
    (teacher / "additional_chat_templates" / "tool_use.jinja").unlink()
    config = teacher / "tokenizer_config.json"
    config.write_text(json.dumps(fields(config) | {"chat_template": CHAT}))
    write_student(teacher, student)
    assert AutoTokenizer.from_pretrained(student).chat_template == CHAT


def test_a_teacher_without_settings_of_generation_has_those_of_its_config(
    byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer)
    (teacher / "generation_config.json").unlink()
    write_student(teacher, student)
    assert fields(student / "generation_config.json")["eos_token_id"] == [0, 258]
    assert not GenerationConfig.from_pretrained(student).do_sample


def test_settings_that_contradict_each_other_stay_as_the_teacher_has_them(
    byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A temperature without sampling, as some well-known models have it."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer)
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (teacher / "generation_config.json").write_text(json.dumps(settings))
    write_student(teacher, student)
    assert settings.items() <= fields(student / "generation_config.json").items()


def test_shards_are_those_of_save_pretrained(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """With the same largest size both cut at the same tensors; read back, nothing is lost."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_teacher(teacher, byte_tokenizer, max_shard_size="20KB")
    assert len(list(teacher.glob("model-*.safetensors"))) > 1
    model = write_student(teacher, student, max_shard_size="4KB")
    shards = sorted(file.name for file in student.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = fields(student / "model.safetensors.index.json")
    assert sorted(set(index["weight_map"].values())) == shards
    model.save_pretrained(tmp_path / "stock", max_shard_size="4KB")  # type: ignore[operator]
    assert index == fields(tmp_path / "stock" / "model.safetensors.index.json")
    assert same_weights(AutoModelForCausalLM.from_pretrained(student), model)
    whole = write_student(teacher, tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file(), "a small model is one file by default"
    assert same_weights(whole, model)
