"""A model with fewer tokens says of them what the whole one says, in every class that allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, PretrainedConfig

from space.input_error import InputError
from space.vocabulary import rows
from space.vocabulary.rows import (
    check_vocabulary,
    named_tokens,
    smaller_config,
    smaller_generation,
    smaller_vocabulary,
    vocabulary_dimensions,
)

DEMO = Path(__file__).parents[3] / "studies" / "demo" / "teacher"
#: Classes that differ in what hangs on tokens: tied or not, biases, factors, tables of their own.
TYPES = ["llama", "gemma2", "gemma3_text", "phi", "gpt2", "qwen3_moe", "bloom", "opt", "granite", "cohere2"]


def config_of(kind: str, **fields: Any) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.for_model(kind, **fields)
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_a_class_keeps_its_contract(kind: str) -> None:
    check_vocabulary(config_of(kind))
    check_vocabulary(config_of(kind), seed=1)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_have_a_row_for_each_token(tied: bool) -> None:
    found = vocabulary_dimensions(LlamaConfig(num_hidden_layers=1, tie_word_embeddings=tied))
    assert found == {"model.embed_tokens.weight": (0,), "lm_head.weight": (0,)}


@given(kept=st.sets(st.integers(1, 1023), min_size=1, max_size=60).map(lambda found: sorted({0, *found})))
def test_the_teachers_logits_are_those_of_the_tokens_that_stay(kept: list[int]) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(DEMO)
    student = smaller_vocabulary(teacher, kept)
    ids = torch.randint(len(kept), (1, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = teacher(torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(student(ids).logits, whole)
    gone = 1024 - len(kept)
    tables = 1 if teacher.config.tie_word_embeddings else 2
    assert teacher.num_parameters() - student.num_parameters() == tables * gone * teacher.config.hidden_size
    assert student.config.vocab_size == len(kept)
    inner = student.model.layers[0].mlp.up_proj.weight
    assert inner.data_ptr() == teacher.model.layers[0].mlp.up_proj.weight.data_ptr(), "nothing else is copied"


def test_a_config_names_tokens_by_their_new_numbers() -> None:
    config = LlamaConfig(vocab_size=100, bos_token_id=5, eos_token_id=[9, 50], pad_token_id=None)
    generation = GenerationConfig(eos_token_id=[9, 50], pad_token_id=7, suppress_tokens=[3, 40])
    assert named_tokens(config, generation) == [3, 5, 7, 9, 40, 50]
    after = smaller_config(config, [3, 5, 7, 9, 50])
    assert (after.vocab_size, after.bos_token_id, after.eos_token_id) == (5, 1, [3, 4])
    assert after.pad_token_id is None
    settings = smaller_generation(generation, [3, 5, 7, 9, 50])
    assert (settings.eos_token_id, settings.pad_token_id, settings.suppress_tokens) == ([3, 4], 2, [0])


def test_where_a_token_counts_by_its_number_the_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows.smaller_vocabulary

    def wrong(model: Any, kept: Any) -> Any:
        return whole(model, [*kept[:-1], kept[-1] - 1] if kept[-1] - 1 not in kept else [*kept[:-1], 0])

    monkeypatch.setattr(rows, "smaller_vocabulary", wrong)
    with pytest.raises(InputError, match="with fewer tokens the others' logits differ by"):
        check_vocabulary(config_of("llama"))


def test_a_class_without_a_field_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_FIELD", "num_attention_heads")
    with pytest.raises(InputError, match="Keep the whole vocabulary"):
        vocabulary_dimensions(LlamaConfig(num_hidden_layers=1))
