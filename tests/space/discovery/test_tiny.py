"""The tiny config of a type keeps its flags, is built by its class, and is small enough to try things on."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from space.discovery.families import sees_future_tokens, why_not_a_decoder
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.verification import verify

_SAMPLE = ("llama", "gpt2", "gemma2", "bloom", "mixtral", "deepseek_v3", "nemotron_h", "gemma4_text", "dbrx")
#: A draft model whose class refuses its own defaults.
_BROKEN = "gemma4_assistant"
#: Three fields of it have to add up to its number of layers.
_REFUSED = ("dory",)

_LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    attention_bias=True,
    bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009],
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)


@torch.no_grad()
def _random_model(config: PretrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
        else:
            parameter.copy_(noise / 3 + (0 if name.endswith("bias") else 1))
    model.eval()
    return model


def _runs(config: PretrainedConfig) -> None:
    """Small, finite, and every token's logits are blind to what follows."""
    model = _random_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 300_000
    tokens_BT = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    assert logits_BTV.shape == (2, 12, 56)
    assert logits_BTV.isfinite().all()
    assert not sees_future_tokens(model, tokens_BT)


@pytest.mark.parametrize("model_type", _SAMPLE)
def test_a_type_is_built_and_run(model_type: str) -> None:
    _runs(tiny_config(CONFIG_MAPPING[model_type]()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {_BROKEN, *_REFUSED}))
def test_every_type_is_run_or_refused_with_a_reason(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    reason = why_not_a_decoder(config)
    if reason is None:
        small = tiny_config(config)
        assert why_not_a_decoder(small) is None
        assert tiny_config(small).to_dict() == small.to_dict()
        assert type(small).from_dict(small.to_dict()).to_dict() == small.to_dict()
        _runs(small)
    else:
        assert reason.startswith(("it ", "its ", "the "))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", _REFUSED)
def test_a_type_whose_class_refuses_tiny_sizes_is_refused_in_its_words(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    with pytest.raises(
        InputError, match=r"a small copy of it does not run \(.* must equal num_hidden_layers\)"
    ):
        verify(CONFIG_MAPPING[model_type]())


def test_a_real_teacher_keeps_its_flags_and_loses_its_sizes() -> None:
    small = tiny_config(_LLAMA_8B)
    assert isinstance(small, LlamaConfig)
    assert small.attention_bias
    assert not small.tie_word_embeddings
    assert _LLAMA_8B.rope_parameters is not None
    assert small.rope_parameters == {**_LLAMA_8B.rope_parameters, "original_max_position_embeddings": 16}
    assert (small.hidden_size, small.intermediate_size) == (36, 40)
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (6, 2, 8)
    assert small.num_hidden_layers == 4
    assert _LLAMA_8B.hidden_size == 4096, "the given config stays as it is"
    _runs(small)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(num_hidden_layers=36, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
        MixtralConfig(num_local_experts=8, sliding_window=4096),
        DeepseekV3Config(first_k_dense_replace=3),
    ],
    ids=lambda config: config.model_type,
)
def test_other_real_teachers_run(config: PretrainedConfig) -> None:
    small = tiny_config(config)
    assert small.tie_word_embeddings == config.tie_word_embeddings
    _runs(small)


def test_a_field_that_only_the_checkpoint_has_stays() -> None:
    plain, real = tiny_config(Qwen3MoeConfig()), tiny_config(Qwen3MoeConfig.from_dict({"head_dim": 128}))
    assert (plain.hidden_size, real.hidden_size, real.head_dim) == (48, 36, 8)
    _runs(real)


def test_each_kind_of_layer_stands_twice_in_no_period() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    small = tiny_config(Gemma3TextConfig(num_hidden_layers=12, layer_types=kinds * 2))
    assert small.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("bart", "encoder-decoder"),
        ("bert", "attend both ways"),
        ("trocr", "decoder half"),
        ("gemma3", "'gemma3_text', can be named"),
        ("moshi", "parts with configs of their own"),
    ],
)
def test_what_is_no_decoder_says_why(model_type: str, words: str) -> None:
    reason = why_not_a_decoder(CONFIG_MAPPING[model_type]())
    assert reason is not None
    assert words in reason


def test_an_encoder_looks_ahead_and_its_decoder_does_not() -> None:
    tokens_BT = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))
    decoder = BertConfig(is_decoder=True)
    assert why_not_a_decoder(decoder) is None
    assert not sees_future_tokens(_random_model(tiny_config(decoder)), tokens_BT)
    assert sees_future_tokens(_random_model(tiny_config(BertConfig())), tokens_BT)
