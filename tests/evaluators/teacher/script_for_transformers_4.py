"""Writes tiny teachers, or reads all models, with transformers 4; run by a test in a process of its own.

``write FOLDER`` makes the teachers that FOLDER/job.json describes. ``read FOLDER`` writes the logits of every
model in FOLDER/teachers and FOLDER/students, and its tokens of some words, to FOLDER/found.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def write(folder: Path) -> None:
    """Write random teachers as transformers 4 writes them."""
    for name, fields in json.loads((folder / "job.json").read_text())["teachers"].items():
        known = AutoConfig.for_model(name).to_dict()
        sizes = {field: size for field, size in SIZES.items() if field in known}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(sizes | fields)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder / "teachers" / name)
        PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            bos_token="<|endoftext|>",
            eos_token="<|endoftext|>",
        ).save_pretrained(folder / "teachers" / name)


def read(folder: Path) -> None:
    """Write what every model answers."""
    job = json.loads((folder / "job.json").read_text())
    found = {}
    for place in sorted([*(folder / "teachers").iterdir(), *(folder / "students").iterdir()]):
        name = f"{place.parent.name}/{place.name}"
        model = AutoModelForCausalLM.from_pretrained(place)
        model.eval()
        with torch.no_grad():
            found[name] = model(torch.tensor(job["tokens"])).logits.contiguous()
        tokens = AutoTokenizer.from_pretrained(place)(job["words"])["input_ids"]
        found[f"{name}/tokens"] = torch.tensor(tokens)
    save_file(found, folder / "found.safetensors")


if __name__ == "__main__":
    assert transformers.__version__.startswith("4.57."), transformers.__version__
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
