"""Folders of tiny checkpoints that are changed as people change theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluators.teacher import Teacher, load_config, load_teacher
from evaluators.teacher.writing import write_directory
from space.axes.config_fields import with_sizes
from space.cutting.extraction import extract, model_from_weights, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.input_error import InputError
from space.verification.contract import random_ranking
from tests.evaluators.tiny_models import VOCABULARY, tiny_model

CPU = torch.device("cpu")
TOKENS = torch.arange(24).view(2, 12) % VOCABULARY
WEIGHTS, CONFIG = "model.safetensors", "config.json"
Tensors = dict[str, Tensor]
Said = pytest.LogCaptureFixture

DEEPSEEK: dict[str, Any] = {
    "num_hidden_layers": 2,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "vocab_size": 257,
}


@pytest.fixture
def save(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    def saved(model: PreTrainedModel, change: Callable[[Tensors], object] = len, **fields: Any) -> Path:
        """A directory of the model, with its stored tensors and the fields of its config changed."""
        path = tmp_path / "teacher"
        model.save_pretrained(path)
        byte_tokenizer.save_pretrained(path)
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS, {"format": "pt"})
        config = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps(config | fields))
        return path

    return saved


def llama(**changes: Any) -> PreTrainedModel:
    return tiny_model("llama", **{"vocab_size": 257, **changes})


def load(path: Path, dtype: torch.dtype = torch.float32) -> Teacher:
    return load_teacher(str(path), revision=None, device=CPU, dtype=dtype)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refusal:
        load(path, **options)
    return str(refusal.value)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


def full_size_student(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The student of all sizes, cut as a run cuts it: from the config alone and the loaded teacher."""
    axis_map = discover(load_config(str(path))).axis_map
    ranking = random_ranking(axis_map, 0)
    tensors = saved_tensors(load(path, dtype).model, axis_map)
    return extract(sort_by_importance(tensors, axis_map, ranking), axis_map, ranking, axis_map.teacher)


def same_size(path: Path) -> PreTrainedModel:
    """A model of the teacher's weights by the config of a student, without the cutting."""
    return model_from_weights(with_sizes(load_config(str(path)), {}), load(path).model.state_dict())


def written(student: PreTrainedModel, path: Path, place: Path) -> Path:
    """The directory of a student, as a run writes it."""
    teacher = load(path)
    write_directory(
        student, teacher.tokenizer, teacher.stored_dtype, place, teacher.other_dtypes, teacher.directory
    )
    return place
