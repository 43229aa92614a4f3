from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from space.axes.axis_map import layer_modules
from space.discovery.discovery import discover
from space.discovery.tiny import tiny
from space.verification.behaviour import modules_that_mix
from space.verification.contract import logits_of, random_teacher, trial_tokens
from space.verification.reload import hushed


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
    with hushed():
        config = tiny(CONFIG_MAPPING[model_type]())
        model, axis_map = random_teacher(config), discover(config).axis_map
        tokens = trial_tokens(config.vocab_size)[:1]
        before = logits_of(model, tokens)
        assert modules_that_mix(model, layer_modules(model, axis_map), tokens) == names
    assert torch.equal(logits_of(model, tokens), before)
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook is left"
