"""A teacher whose classes come with it as files is cut like any other, and its students carry the files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evaluators.teacher import Teacher, load_config, load_teacher
from evaluators.teacher.writing import write_directory
from space.axes.architecture import Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.contract import random_ranking
from space.verification.verification import verified_axis_map
from tests.evaluators.teacher.checkpoints import CONFIG, CPU, Said, llama, logits, save, written

__all__ = ["save"]
CONFIGURATION = """
from transformers import PretrainedConfig


class TallConfig(PretrainedConfig):
    model_type = "tall"

    def __init__(
        self, vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, head_dim=128, scale=0.5, tie_word_embeddings=False, **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.scale = scale
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
"""
MODELING = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_tall import TallConfig


# As outputs name the cache: past_key_values until transformers 5.23.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.number, self.size, self.scale = number, config.head_dim, config.scale
        width = config.num_attention_heads * config.head_dim
        self.first, self.second = Norm(config.hidden_size), Norm(config.hidden_size)
        self.q = nn.Linear(config.hidden_size, width, bias=False)
        self.k = nn.Linear(config.hidden_size, width, bias=False)
        self.v = nn.Linear(config.hidden_size, width, bias=False)
        self.o = nn.Linear(width, config.hidden_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, cache):
        y = self.first(x)
        q, k, v = (one(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for one in (self.q, self.k, self.v))
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, mask.to(q.device), scale=1.0)
        x = x + self.scale * self.o(y.transpose(1, 2).flatten(2))
        return x + self.scale * self.down(F.relu(self.up(self.second(x))))


class TallModel(PreTrainedModel):
    config_class = TallConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, n) for n in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, cache=None, use_cache=None, **kwargs):
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **{CACHE: cache})


class TallForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TallConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = TallModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.words

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, cache=None, past_key_values=None, use_cache=None, **kwargs):
        cache = past_key_values if cache is None else cache
        inner = self.model(input_ids=input_ids, cache=cache, use_cache=use_cache)
        logits = self.lm_head(inner.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: inner[CACHE] if use_cache else None})
"""
AUTO_MAP = {
    "AutoConfig": "configuration_tall.TallConfig",
    "AutoModelForCausalLM": "modeling_tall.TallForCausalLM",
}
SIZES = {
    "vocab_size": 257,
    "hidden_size": 20,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 6,
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder in which transformers puts code that comes with models; what it registers is forgotten."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    yield
    forget()


def forget() -> None:
    kind = CONFIG_MAPPING._extra_content.pop("tall", None)
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(kind, None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def path(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The directory of a teacher of random weights with its code."""
    path = tmp_path / "teacher"
    path.mkdir()
    fields = {"model_type": "tall", "auto_map": AUTO_MAP, "scale": 0.7, "torch_dtype": "float32", **SIZES}
    (path / CONFIG).write_text(json.dumps(fields))
    (path / "configuration_tall.py").write_text(CONFIGURATION)
    (path / "modeling_tall.py").write_text(MODELING)
    byte_tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = load_config(str(path), trust_remote_code=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    tensors = {name: one + 0.1 * torch.randn_like(one) for name, one in model.state_dict().items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def trusted(path: Path) -> Teacher:
    return load_teacher(str(path), revision=None, device=CPU, dtype=torch.float32, trust_remote_code=True)


@pytest.mark.slow
def test_the_contract_holds_along_its_axes(path: Path) -> None:
    axis_map = verified_axis_map(load_config(str(path), trust_remote_code=True))
    assert set(axis_map.free) == {Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.HEAD_DIM, Axis.LAYERS}


def test_students_carry_the_code(path: Path, tmp_path: Path) -> None:
    teacher = trusted(path)
    axis_map = discover(load_config(str(path), trust_remote_code=True)).axis_map
    ranking = random_ranking(axis_map, 0)
    tensors = sort_by_importance(saved_tensors(teacher.model, axis_map), axis_map, ranking)
    smaller = axis_map.complete({Axis.HIDDEN: 12, Axis.MLP: 16, Axis.HEADS: 2, Axis.LAYERS: 2})
    student = extract(tensors, axis_map, ranking, smaller)
    place = tmp_path / "student"
    write_directory(student, teacher.tokenizer, torch.float32, place, teacher.other_dtypes, teacher.directory)
    for name in ("configuration_tall.py", "modeling_tall.py"):
        assert (place / name).read_bytes() == (path / name).read_bytes()
    fields = json.loads((place / CONFIG).read_text())
    assert (fields["auto_map"], fields["hidden_size"], fields["scale"]) == (AUTO_MAP, 12, 0.7)
    forget()
    read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert type(read).__name__ == "TallForCausalLM"
    torch.testing.assert_close(logits(read), logits(student))


def test_it_is_tried_on_a_small_copy_with_its_flags(path: Path) -> None:
    """Though the class has sizes and flags of its own, as arguments that transformers does not know."""
    copy = tiny_config(load_config(str(path), trust_remote_code=True))
    assert copy.scale == 0.7
    assert max(copy.hidden_size, copy.intermediate_size, copy.vocab_size, copy.num_hidden_layers) < 200


def test_changed_code_of_another_directory_takes_its_place(path: Path, tmp_path: Path) -> None:
    before = logits(trusted(path).model)
    other = tmp_path / "other"
    path.rename(other)
    (other / "modeling_tall.py").write_text(MODELING.replace("F.relu", "F.silu"))
    assert not torch.allclose(logits(trusted(other).model), before)


def test_it_is_refused_without_trust_though_it_ran_before(path: Path) -> None:
    trusted(path)
    with pytest.raises(InputError, match=r"is of the type tall, .* its own code would have to run"):
        load_config(str(path))


def test_code_without_a_class_that_is_needed_is_refused(path: Path) -> None:
    fields = json.loads((path / CONFIG).read_text())
    fields["auto_map"] = {"AutoConfig": AUTO_MAP["AutoConfig"], "AutoModel": "modeling_tall.TallModel"}
    (path / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(InputError, match="names none for AutoModelForCausalLM"):
        trusted(path)


def test_code_that_fails_is_refused_with_its_words(path: Path) -> None:
    (path / "modeling_tall.py").write_text("raise ValueError('of no use')\n")
    with pytest.raises(InputError, match="of no use"):
        trusted(path)


@pytest.mark.parametrize("trust", [False, True])
def test_code_for_a_type_of_transformers_gives_way(
    trust: bool, save: object, tmp_path: Path, caplog: Said
) -> None:
    path: Path = save(llama(), auto_map=AUTO_MAP)  # type: ignore[operator]
    (path / "modeling_tall.py").write_text("raise SystemExit('this ran')")
    teacher = load_teacher(str(path), revision=None, device=CPU, dtype=torch.float32, trust_remote_code=trust)
    [line] = [line for line in caplog.messages if "names code of its own" in line]
    assert "for AutoConfig, AutoModelForCausalLM; transformers' own classes take its place" in line
    place = written(teacher.model, path, tmp_path / "student")
    assert "auto_map" not in json.loads((place / CONFIG).read_text())
    assert not list(place.glob("*.py"))
    assert load_file(place / "model.safetensors").keys() == load_file(path / "model.safetensors").keys()
