"""Students of teachers whose files older programs wrote have what older programs read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from evaluators.teacher import load_config
from evaluators.teacher.config_file import restore_form
from space.axes.architecture import Axis
from space.axes.config_fields import with_sizes
from space.axes.layers import per_layer_fields
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.verification.contract import random_ranking
from tests.evaluators.teacher.checkpoints import CONFIG, TOKENS, llama, load, logits, save, written

__all__ = ["save"]
NEW = ("rope_parameters", "dtype", "layer_types")
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


def old_file(path: Path, config: PretrainedConfig, **old: Any) -> Path:
    """A directory with a config.json that has old fields in place of today's."""
    path.mkdir()
    fields = json.loads(config.to_json_string())
    for name in NEW:
        fields.pop(name, None)
    (path / CONFIG).write_text(json.dumps(fields | {"transformers_version": "4.43.1"} | old))
    return path / CONFIG


def student_fields(source: Path, place: Path, **sizes: Any) -> dict[str, Any]:
    """config.json of a student of other sizes."""
    config = with_sizes(AutoConfig.from_pretrained(source.parent), sizes)
    config.dtype = torch.float32
    config.save_pretrained(place)
    restore_form(place / CONFIG, config, source)
    again = AutoConfig.from_pretrained(place)
    assert again.rope_parameters == config.rope_parameters
    fields: dict[str, Any] = json.loads((place / CONFIG).read_text())
    return fields


@pytest.mark.parametrize(
    ("model_type", "old"),
    [
        ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
        ("qwen2", {"rope_theta": 1000000, "rope_scaling": None, "use_mrope": False}),
        ("gemma3_text", {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
        ("stablelm", {"rope_theta": 5000, "partial_rotary_factor": 0.5}),
    ],
)
def test_fields_that_today_are_named_otherwise_stay(
    model_type: str, old: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(model_type, num_hidden_layers=4, hidden_size=64, num_attention_heads=4)
    source = old_file(tmp_path / "teacher", config, **old, torch_dtype="bfloat16")
    found = student_fields(source, tmp_path / "student", hidden_size=32, num_attention_heads=2)
    assert {name: found[name] for name in old} == old
    assert (found["torch_dtype"], found["dtype"]) == ("float32", "float32")
    assert found["hidden_size"] == 32
    assert found["transformers_version"] == "4.43.1"


def test_an_old_name_of_a_size_has_the_student_s_size(tmp_path: Path) -> None:
    config = AutoConfig.for_model("qwen3_moe", num_experts=8)
    source = old_file(tmp_path / "teacher", config, num_experts=8, num_local_experts=8)
    stored = json.loads(source.read_text())
    del stored["num_local_experts"]
    source.write_text(json.dumps(stored))
    found = student_fields(source, tmp_path / "student", num_local_experts=6)
    assert found["num_experts"] == found["num_local_experts"] == 6


def test_entries_of_layers_keep_their_old_names(tmp_path: Path) -> None:
    kinds = ["mamba", "hybrid", "mamba", "mamba"]
    fields = AutoConfig.for_model("zamba", num_hidden_layers=4).to_dict() | {"layers_block_type": kinds}
    (tmp_path / "teacher").mkdir()
    source = tmp_path / "teacher" / CONFIG
    source.write_text(json.dumps(fields))
    teacher = AutoConfig.from_pretrained(source.parent)
    assert teacher.layers_block_type != kinds
    config = with_sizes(teacher, {"num_hidden_layers": 2} | per_layer_fields(teacher, 4, [0, 1]))
    config.save_pretrained(tmp_path)
    restore_form(tmp_path / CONFIG, config, source)
    assert json.loads((tmp_path / CONFIG).read_text())["layers_block_type"] == ["mamba", "hybrid"]


def test_nested_configs_keep_theirs(tmp_path: Path) -> None:
    """Both in a student that is nested as well, and in one of the inner type alone."""
    inner = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "torch_dtype": "bfloat16"}
    fields = json.loads(Gemma3Config().to_json_string()) | {"torch_dtype": "bfloat16"}
    for name in NEW:
        fields["text_config"].pop(name, None)
    fields["text_config"] |= inner
    source = tmp_path / CONFIG
    source.write_text(json.dumps(fields))
    whole = Gemma3Config.from_pretrained(tmp_path)
    inside: Any = whole.text_config
    for config in (whole, inside):
        config.dtype = torch.bfloat16
        config.save_pretrained(tmp_path / config.model_type)
        restore_form(tmp_path / config.model_type / CONFIG, config, source)
        found = json.loads((tmp_path / config.model_type / CONFIG).read_text())
        part = found["text_config"] if config is whole else found
        assert {name: part[name] for name in inner} == inner
    assert type(whole).from_pretrained(tmp_path / "gemma3").to_dict() == whole.to_dict()


def test_what_was_taken_back_stays_away(save: Callable[..., Path], tmp_path: Path) -> None:
    """Code, implementations and layers that are not there, and a tie that the files do not have."""
    gone = {
        "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
        "attn_implementation": "flash_attention_2",
        "_attn_implementation": "flash_attention_2",
        "_name_or_path": "/home/someone/model",
    }

    def part(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    path = save(llama(tie_word_embeddings=True), part, num_nextn_predict_layers=1, rope_theta=1e4, **gone)
    config = with_sizes(load_config(str(path)), {})
    config.save_pretrained(tmp_path / "student")
    restore_form(tmp_path / "student" / CONFIG, config, path / CONFIG)
    found = json.loads((tmp_path / "student" / CONFIG).read_text())
    assert not gone.keys() & found.keys()
    assert (found["num_nextn_predict_layers"], found["tie_word_embeddings"]) == (0, False)
    assert found["rope_theta"] == 1e4


def write_old_companions(path: Path) -> dict[str, bytes]:
    """Files beside the weights as transformers 4 wrote them, and their bytes."""
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True, "lstrip": False}},
                "bos_token": "<|endoftext|>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|endoftext|>",
                "model_max_length": 64,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        )
    )
    (path / "special_tokens_map.json").write_text('{"bos_token": "<|endoftext|>"}')
    (path / "generation_config.json").write_text('{"eos_token_id": 0, "transformers_version": "4.43.1"}')
    (path / "chat_template.jinja").write_bytes(b"{{ messages[0].content }}\r\n")
    (path / "modeling_own.py").write_text("raise RuntimeError('this is not to be run')\n")
    (path / "notes.txt").write_text("of someone")
    away = ("config.json", "model.safetensors", "modeling_own.py", "notes.txt")
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in away}


def test_a_student_has_the_very_files_of_its_teacher(
    save: Callable[..., Path], byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = save(llama(), rope_theta=10000.0, rope_scaling=None, torch_dtype="float32")
    companions = write_old_companions(path)
    place = written(cut(path), path, tmp_path / "student")
    found = {file.name: file.read_bytes() for file in place.iterdir()}
    assert found.keys() == companions.keys() | {"config.json", "model.safetensors"}
    assert {name: found[name] for name in companions} == companions
    assert AutoTokenizer.from_pretrained(place)("all is well") == byte_tokenizer("all is well")


def test_settings_of_generation_that_cannot_be_read_are_made_anew(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    path = save(llama(eos_token_id=7))
    (path / "generation_config.json").write_text("{")
    place = written(cut(path), path, tmp_path / "student")
    assert json.loads((place / "generation_config.json").read_text())["eos_token_id"] == 7


def cut(path: Path) -> Any:
    """A student of fewer layers, hidden dimensions and neurons than the teacher in a directory."""
    axis_map = discover(load_config(str(path))).axis_map
    ranking = random_ranking(axis_map, 0)
    tensors = sort_by_importance(saved_tensors(load(path).model, axis_map), axis_map, ranking)
    teacher = axis_map.teacher
    sizes = {axis: teacher[axis] // 2 for axis in (Axis.HIDDEN, Axis.MLP) if axis in axis_map.free}
    smaller = axis_map.complete(sizes | {Axis.LAYERS: teacher.layers - 1})
    return extract(tensors, axis_map, ranking, smaller)


#: Tiny teachers of each type, with what is told by fields that have other names today.
TEACHERS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "qwen2": {"rope_theta": 3000.0, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "gemma3_text": {"rope_theta": 3000.0, "rope_local_base_freq": 50.0, "sliding_window": 4},
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 300},
    "phi3": {"rope_theta": 3000.0, "pad_token_id": 0},
    "qwen3_moe": {"rope_theta": 3000.0, "num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4.57 and what it asks for; all else comes from this environment."""
    folder = tmp_path_factory.mktemp("transformers_4")
    wanted = ["transformers==4.57.*", "huggingface_hub>=0.34,<1", "tokenizers>=0.22,<=0.23.0"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def run_there(folder: Path, *arguments: str) -> None:
    """Run the script beside this file with the packages of a folder before those of this environment."""
    script = Path(__file__).with_name("script_for_transformers_4.py")
    surroundings = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_transformers_4_gives_the_logits_of_today(
    transformers_4: Path, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Teachers are written there, students cut here; both versions read them alike, tokenizers included."""
    words = "all is well"
    job = {"teachers": TEACHERS, "tokens": TOKENS.tolist(), "words": words}
    (tmp_path / "job.json").write_text(json.dumps(job))
    byte_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    run_there(transformers_4, "write", str(tmp_path))
    expected = {}
    for name in TEACHERS:
        teacher = tmp_path / "teachers" / name
        expected[f"teachers/{name}"] = logits(load(teacher).model)
        student = cut(teacher)
        expected[f"students/{name}"] = logits(student)
        place = written(student, teacher, tmp_path / "students" / name)
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(place)), expected[f"students/{name}"]
        )
    run_there(transformers_4, "read", str(tmp_path))
    found = load_file(tmp_path / "found.safetensors")
    for name, wanted in expected.items():
        difference = float((found[name] - wanted).abs().max())
        assert difference <= 1e-5 * float(wanted.abs().max()), (name, difference)
        assert found[f"{name}/tokens"].tolist() == byte_tokenizer(words)["input_ids"]
