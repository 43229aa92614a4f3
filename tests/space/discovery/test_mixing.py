from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from space.axes.axis_map import layer_modules
from space.discovery.discovery import discover
from space.discovery.tiny import tiny_config
from space.verification.behaviour import token_mixing_modules
from space.verification.contract import contract_tokens, logits_of, random_teacher
from space.verification.reload import captured_warnings


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("llama", {"model.layers.*.self_attn.o_proj"}),
        ("gpt2", {"transformer.h.*.attn.c_proj"}),
        ("opt", {"model.decoder.layers.*.self_attn.out_proj"}),
        ("gptj", {"transformer.h.*.attn.out_proj"}),
        ("bloom", {"transformer.h.*.self_attention.dense"}),
        ("lfm2", {"model.layers.*.self_attn.out_proj", "model.layers.*.conv.out_proj"}),
    ],
)
def test_the_first_projection_that_reads_other_tokens(model_type: str, names: set[str]) -> None:
    with captured_warnings():
        config = tiny_config(CONFIG_MAPPING[model_type]())
        model, axis_map = random_teacher(config), discover(config).axis_map
        tokens = contract_tokens(config.vocab_size)[:1]
        before = logits_of(model, tokens)
        assert token_mixing_modules(model, layer_modules(model, axis_map), tokens) == names
    assert torch.equal(logits_of(model, tokens), before)
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook is left"
