from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from evaluators.distillation.efficiency import training_attention
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.evaluators.tiny_types import TYPES, model_of
from tests.versions import INSTALLED

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
    ("model_type", "window"),
    [("llama", None), ("mistral", 5), ("qwen2", None), ("qwen3", None), ("gpt2", None), ("olmo3", 5)],
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


def loss_of_step(student: PreTrainedModel) -> tuple[float, list[Tensor]]:
    """Of a step on ``TOKENS``: the loss, and a gradient for each parameter that has one."""
    loss = student(input_ids=TOKENS, labels=TOKENS).loss
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        loss, list(student.parameters()), allow_unused=True
    )
    return loss.item(), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_training_step_is_the_one_of_the_students_own_attention(
    accelerators: Accelerators, model_type: str
) -> None:
    """Windows, caps on the scores, sinks, slopes by distance: whichever kernel is chosen, they are there."""
    student = model_of(model_type)
    wanted, gradients = loss_of_step(student)
    with training_attention(student, 20, accelerators("bf16")):
        loss, others = loss_of_step(student)
    assert loss == pytest.approx(wanted, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for mine, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "bloom", "mpt"])
def test_a_class_without_a_fused_kernel_stays_plain(accelerators: Accelerators, model_type: str) -> None:
    student = model_of(model_type)
    plain = attention(student)
    assert plain == "eager" or Version("5.23") > INSTALLED, "5.17 loads Gemma 2 with another kernel itself"
    with training_attention(student, 20, accelerators("bf16")):
        assert attention(student) == plain
    assert attention(student) == plain


@pytest.mark.parametrize(("factor", "within"), [(1.0, "eager"), (1.01, "sdpa")])
def test_a_kernel_that_computes_something_else_is_not_taken(
    accelerators: Accelerators, monkeypatch: pytest.MonkeyPatch, factor: float, within: str
) -> None:
    plain = modeling_llama.eager_attention_forward

    def scaled(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        output, weights = plain(*arguments, **keywords)
        return factor * output, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", scaled)
    student = tiny_model()
    with training_attention(student, 20, accelerators("bf16")):
        assert attention(student) == within
    assert attention(student) == "sdpa"
