from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evaluators.distillation.attention import training_attention
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.tiny_models import random_tokens, tiny_model

TOKENS = random_tokens(3, 20).long()


def attention(model: PreTrainedModel) -> str:
    name = model.config._attn_implementation
    assert isinstance(name, str)
    return name


@pytest.mark.parametrize(
    ("precision", "block", "within"),
    [("bf16", 128, "eager"), ("bf16", 256, "eager"), ("bf16", 257, "sdpa"), ("no", 128, "sdpa")],
)
def test_plain_attention_is_for_short_blocks_in_bfloat16(
    accelerators: Accelerators, precision: str, block: int, within: str
) -> None:
    student = tiny_model()
    with training_attention(student, block, accelerators(precision)):
        assert attention(student) == within
    assert attention(student) == "sdpa"


def test_an_implementation_that_somebody_chose_stays(accelerators: Accelerators) -> None:
    student = tiny_model()
    student.set_attn_implementation("flex_attention")
    with training_attention(student, 128, accelerators("bf16")):
        assert attention(student) == "flex_attention"
    assert attention(student) == "flex_attention"


def test_the_implementation_is_given_back_after_an_error(accelerators: Accelerators) -> None:
    student = tiny_model()
    with pytest.raises(RuntimeError, match="stop"), training_attention(student, 128, accelerators("bf16")):
        raise RuntimeError("stop")
    assert attention(student) == "sdpa"


@pytest.mark.parametrize(
    ("model_type", "window"), [("llama", None), ("mistral", 5), ("qwen2", None), ("qwen3", None)]
)
def test_logits_and_gradients_are_the_same(
    accelerators: Accelerators, model_type: str, window: int | None
) -> None:
    student = tiny_model(model_type, **({"sliding_window": window} if window else {}))
    fused = student(input_ids=TOKENS).logits
    gradients = torch.autograd.grad(fused.square().sum(), list(student.parameters()))
    with training_attention(student, 20, accelerators("bf16")):
        plain = student(input_ids=TOKENS).logits
        others = torch.autograd.grad(plain.square().sum(), list(student.parameters()))
    assert not torch.equal(plain, fused), "the same kernel ran twice"
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)
    for mine, wanted in zip(others, gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-3)


def test_a_config_saved_within_does_not_carry_the_change(accelerators: Accelerators, tmp_path: Path) -> None:
    student = tiny_model()
    student.config.save_pretrained(tmp_path / "before")
    with training_attention(student, 128, accelerators("bf16")):
        student.config.save_pretrained(tmp_path / "within")
    before, within = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "within")
    )
    assert before == within
