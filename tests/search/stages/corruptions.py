"""What happens to directories of models: files torn, edited by hand, converted, merged, mixed up.

``corrupt`` does one such thing, drawn by a seed, to a copy of a directory with ``config.json``,
``model.safetensors`` and a tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_OTHER_VALUES: tuple[Any, ...] = (None, "many", [], {}, -1, 0, 1, 1.5, True, 7, 10**9)
_TYPES = ("mistral", "qwen2", "gemma", "gpt2", "bert", "t5", "mamba", "llamma", "", None, 3)

Weights = dict[str, Tensor]
Fields = dict[str, Any]


def corrupt(directory: Path, seed: int) -> str:
    """Do something to the files of a directory, and return what, in words."""
    rng = random.Random(seed)
    kinds = (_weights, _weights, _config, _config, _tokenizer, _file)
    return rng.choice(kinds)(directory, rng)


def _weights(directory: Path, rng: random.Random) -> str:
    path = directory / "model.safetensors"
    weights = load_file(path)
    said = rng.choice(_TO_WEIGHTS)(weights, rng.choice(sorted(weights)), rng)
    save_file(weights, path, metadata={"format": "pt"})
    return said


def _dropped(weights: Weights, name: str, rng: random.Random) -> str:
    del weights[name]
    return f"{name} is missing"


def _renamed(weights: Weights, name: str, rng: random.Random) -> str:
    new = rng.choice((f"base_model.{name}", name.replace("proj", "projection"), name.removeprefix("model.")))
    weights[new] = weights.pop(name)
    return f"{name} is called {new}"


def _reshaped(weights: Weights, name: str, rng: random.Random) -> str:
    values = weights[name]
    longer, turned = torch.cat([values, values[:3]]), values.movedim(0, -1)
    shapes: list[Tensor] = [values[:-1], longer, values[None], values.flatten(), turned, values[:0]]
    weights[name] = rng.choice(shapes).contiguous()
    return f"{name} is {tuple(weights[name].shape)} instead of {tuple(values.shape)}"


def _retyped(weights: Weights, name: str, rng: random.Random) -> str:
    dtype = rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn))
    weights[name] = weights[name].to(dtype)
    return f"{name} is {dtype}"


def _all_retyped(weights: Weights, name: str, rng: random.Random) -> str:
    dtype = rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn))
    weights |= {name: values.to(dtype) for name, values in weights.items()}
    return f"all are {dtype}"


def _not_finite(weights: Weights, name: str, rng: random.Random) -> str:
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 1e38))
    weights[name].view(-1)[rng.randrange(weights[name].numel())] = value
    return f"{name} has a value of {value}"


def _extra(weights: Weights, name: str, rng: random.Random) -> str:
    new = rng.choice(
        (
            *("model.layers.5.self_attn.q_proj.weight", "model.layers.9.eh_proj.weight", "mtp.fc.weight"),
            *("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.q_proj.bias"),
            *("model.layers.0.self_attn.q_proj.lora_A.weight", "v_head.weight", "lm_head.weight"),
            *("model.vision_tower.patch.weight", "model.layers.0.mlp.down_proj.weight_scale"),
        )
    )
    weights[new] = torch.randn(64, 64)
    return f"{new} is there too"


def _swapped(weights: Weights, name: str, rng: random.Random) -> str:
    other = rng.choice(sorted(weights))
    weights[name], weights[other] = weights[other], weights[name]
    return f"{name} and {other} are swapped"


def _untied(weights: Weights, name: str, rng: random.Random) -> str:
    head = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"] = head + rng.choice((0.0, 0.1)) * torch.randn(head.shape)
    return "there is a head beside a tied embedding"


def _all_prefixed(weights: Weights, name: str, rng: random.Random) -> str:
    prefix = rng.choice(("base_model.model.", "module.", "_orig_mod.", "transformer."))
    renamed = {f"{prefix}{name}": values for name, values in weights.items()}
    weights.clear()
    weights |= renamed
    return f"all names begin with {prefix}"


_TO_WEIGHTS: tuple[Callable[[Weights, str, random.Random], str], ...] = (
    *(_dropped, _renamed, _reshaped, _retyped, _all_retyped),
    *(_not_finite, _extra, _swapped, _untied, _all_prefixed),
)


def _config(directory: Path, rng: random.Random) -> str:
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    said = rng.choice((_field_dropped, _field_of_another_kind, _contradiction, _field_added))(fields, rng)
    path.write_text(json.dumps(fields, indent=2))
    return said


def _field_dropped(fields: Fields, rng: random.Random) -> str:
    name = rng.choice(sorted(fields))
    del fields[name]
    return f"config.json has no {name}"


def _field_of_another_kind(fields: Fields, rng: random.Random) -> str:
    name = rng.choice(sorted(fields))
    fields[name] = rng.choice(_TYPES if name == "model_type" else _OTHER_VALUES)
    return f"config.json: {name} is {fields[name]!r}"


def _contradiction(fields: Fields, rng: random.Random) -> str:
    name = rng.choice(_SIZES)
    was = fields[name]
    fields[name] = rng.choice((was + 1, max(1, was - 1), 2 * was, max(1, was // 2)))
    return f"config.json: {name} is {fields[name]} instead of {was}"


def _field_added(fields: Fields, rng: random.Random) -> str:
    added: tuple[Fields, ...] = (
        {"tie_word_embeddings": False},
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "none of those known"}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"dtype": "float7"},
        {"torch_dtype": "bfloat16"},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "yarn", "factor": "four"}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"attn_implementation": "flash_attention_2"},
        {"num_nextn_predict_layers": 1},
        {"sliding_window": 4},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"layer_types": ["full_attention"] * 3},
        {"is_encoder_decoder": True},
        {"text_config": {"hidden_size": 12}},
        {"bos_token_id": 100_000},
        {"eos_token_id": [2, 3]},
    )
    change = rng.choice(added)
    fields.update(change)
    return f"config.json: {change}"


def _tokenizer(directory: Path, rng: random.Random) -> str:
    path = directory / "tokenizer.json"
    what = rng.randrange(8)
    if what == 0:
        path.unlink()
        return "tokenizer.json is missing"
    if what == 1:
        (directory / "tokenizer_config.json").unlink()
        return "tokenizer_config.json is missing"
    if what == 2:
        path.write_text(path.read_text()[: rng.randrange(path.stat().st_size)])
        return "tokenizer.json is torn"
    if what == 3:
        (directory / "tokenizer_config.json").write_text(rng.choice(("[]", "{", '{"tokenizer_class": "No"}')))
        return "tokenizer_config.json is nonsense"
    about = json.loads(path.read_text())
    vocabulary = about["model"]["vocab"]
    if what == 4 and isinstance(vocabulary, dict):
        about["model"]["vocab"] = {token: number + 600 for token, number in vocabulary.items()}
    elif what == 5:
        about["added_tokens"].append(
            {"id": 700, "content": "<|more|>", "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False, "special": True}
        )
    elif what == 6:
        about["model"]["type"] = "Unheard of"
    else:
        about["model"]["vocab"] = dict(list(vocabulary.items())[:9]) if isinstance(vocabulary, dict) else []
    path.write_text(json.dumps(about))
    return f"tokenizer.json is of another model ({what})"


def _file(directory: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(directory.iterdir()))
    whole = path.read_bytes()
    what = rng.randrange(5)
    if what == 0:
        path.unlink()
    elif what == 1:
        path.write_bytes(b"")
    elif what == 2:
        path.write_bytes(whole[: rng.randrange(len(whole))])
    elif what == 3:
        path.write_bytes(rng.randbytes(16) + whole[16:])
    else:
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1044992\n")
    return f"{path.name}: {('missing', 'empty', 'torn', 'scrambled', 'a pointer of git-lfs')[what]}"
