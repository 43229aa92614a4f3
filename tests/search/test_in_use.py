"""What a run wrote, in the tools people use: the pipelines of transformers, and llama.cpp's converter."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, pipeline

from tests.converted import converted, let_transformers_read
from tests.small_search import CHAT, SMALL, TURN, write_stories, write_teacher
from tests.warm_python import warm_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that a small search chose."""
    folder = tmp_path_factory.mktemp("in_use")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    command = [
        *(sys.executable, "-m", "search.run", "--budget", "60%"),
        *("--model", "teacher", "--data", "stories.txt"),
        *("--study-name", "it", *SMALL.split()),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SLIMSEARCH_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = warm_run(command, cwd=folder, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "it" / "summary.json").read_text())
    [chosen] = summary["promoted"]
    return folder / "runs" / "it" / str(chosen["path"])


def test_a_pipeline_goes_on_with_text(written: Path) -> None:
    writer: Any = pipeline("text-generation", model=str(written))
    assert writer.model.dtype == torch.bfloat16
    begun = "the cat sat"
    [told] = writer(begun, do_sample=False)
    assert told["generated_text"].startswith(begun)
    # It may end a text where it likes; that it is not to do so before shows that it ends at the limit.
    [made] = writer(begun, do_sample=False, min_new_tokens=5, return_tensors=True)
    new = len(made["generated_token_ids"]) - len(writer.tokenizer(begun)["input_ids"])
    assert new == 5, "as the teacher's settings say"


def test_a_pipeline_answers_in_a_chat(written: Path) -> None:
    writer: Any = pipeline("text-generation", model=str(written))
    talk = [{"role": "user", "content": "the cat"}]
    [told] = writer(talk, do_sample=False, max_new_tokens=3)
    assert told["generated_text"][0] == talk[0]
    answer = told["generated_text"][1]
    assert answer["role"] == "assistant"
    ids = writer.tokenizer.apply_chat_template(talk, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == TURN
    made = writer.model.generate(ids, do_sample=False, max_new_tokens=3)[0, ids.shape[1] :]
    assert answer["content"] == writer.tokenizer.decode(made, skip_special_tokens=True)


def test_its_card_has_the_teacher_s_licence_and_no_base_model_that_is_not_certain(written: Path) -> None:
    data: Any = ModelCard.load(written / "README.md", ignore_metadata_errors=False).data
    assert (data.license, data.language, data.base_model) == ("mit", "en", None)
    assert (written / "LICENSE").read_text() == "MIT, as it is.\n"
    stated = json.loads((written.parents[1] / "summary.json").read_text())["promoted"][0]["loss"]
    [loss] = [one.metric_value for one in data.eval_results if one.metric_type == "loss"]
    assert loss == pytest.approx(stated, abs=1e-4)


@pytest.fixture(scope="module")
def in_gguf(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(written, tmp_path_factory.mktemp("gguf"))


def test_the_converter_of_llama_cpp_loses_nothing(written: Path, in_gguf: Path) -> None:
    """Sizes, tokens, and every number of every tensor; queries and keys in the order that llama.cpp turns."""
    reader = import_module("gguf").GGUFReader(in_gguf)
    config = json.loads((written / "config.json").read_text())
    found = {name: field.contents() for name, field in reader.fields.items()}
    sizes = {
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
    }
    assert {name: found[f"llama.{name}"] for name in sizes} == sizes
    assert found["general.license"] == "mit"
    assert found["tokenizer.chat_template"] == CHAT
    assert found["tokenizer.ggml.tokens"][TURN] == "<|turn|>"
    stored = {_renamed(name): tensor for name, tensor in load_file(written / "model.safetensors").items()}
    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    assert tensors.keys() == stored.keys()
    for name, tensor in stored.items():
        wanted = tensor.float()
        if "attn_q" in name or "attn_k" in name:
            halves = wanted.unflatten(0, (-1, 2, config["head_dim"] // 2))
            wanted = halves.transpose(1, 2).reshape(wanted.shape)
        assert torch.equal(tensors[name].view(wanted.shape), wanted), name


def _renamed(name: str) -> str:
    """The name that llama.cpp has for a tensor of a Llama."""
    parts = {
        **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
        **{"model.layers": "blk", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
        **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
        **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
        "mlp.down_proj": "ffn_down",
    }
    for theirs, llama in parts.items():
        name = name.replace(theirs, llama)
    return name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_converted_gives_the_same_logits(
    written: Path, in_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back by transformers' own reader of GGUF files."""
    let_transformers_read(monkeypatch)
    ours = LlamaForCausalLM.from_pretrained(written, dtype=torch.float32)
    theirs = LlamaForCausalLM.from_pretrained(in_gguf.parent, gguf_file=in_gguf.name, dtype=torch.float32)
    tokens = torch.randint(3, TURN, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits)
