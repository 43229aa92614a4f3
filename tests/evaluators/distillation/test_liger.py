"""Liger's fused loss against ours, on the host where Liger is installed; when it applies, everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.module import fused_loss, fused_sum, is_plain_head, liger_installed
from evaluators.distillation.targets.batch import Dense
from evaluators.distillation.targets.live import LiveTargets, TextTargets
from evaluators.huggingface.final_states import logits_of
from tests.evaluators.tiny_models import random_tokens, tiny_model, tiny_student

TOKENS = random_tokens(2, 6)


@pytest.mark.skipif(not liger_installed(), reason="liger-kernel is not installed")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("terms", ["forward-kl", "reverse-kl", "0.5*jensen-shannon"])
def test_values_and_gradients_are_ours(terms: str, temperature: float) -> None:
    student, teacher, loss = tiny_student(), tiny_model(), Loss.parse(terms, temperature)
    head = student.get_parameter("lm_head.weight")
    torch.manual_seed(0)
    states, final = torch.randn(40, 8, requires_grad=True), torch.randn(40, 16)
    mask = torch.arange(40) % 7 != 3
    with torch.no_grad():
        answer = Dense(logits_of(teacher, final))
    nexts = torch.zeros(40, dtype=torch.long)
    ours = (loss.of(logits_of(student, states), answer, nexts)[0] * mask).sum() / 40
    wanted = torch.autograd.grad(ours, [states, head])
    theirs = fused_sum(student, teacher, loss, compiled=False)(states, final, mask) / 40
    found = torch.autograd.grad(theirs, [states, head])
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    nothing = fused_sum(student, teacher, loss, compiled=False)(states, final, torch.zeros_like(mask))
    assert nothing == 0
    assert all((one == 0).all() for one in torch.autograd.grad(nothing, [states, head]))


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        (tiny_model(), True),
        (tiny_model("opt"), True),
        (tiny_model("gpt2"), True),
        (tiny_model("phi"), False),
        (tiny_model("gemma2"), False),
        (tiny_model("granite", logits_scaling=8.0), False),
        (tiny_model("cohere", eos_token_id=None, bos_token_id=None), False),
    ],
    ids=["llama", "opt", "gpt2", "bias", "cap", "divisor", "scale"],
)
def test_heads_are_told_by_what_they_do(model: PreTrainedModel, plain: bool) -> None:
    assert is_plain_head(model) is plain


def as_if_on_a_gpu(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.setattr(type(model), "device", SimpleNamespace(type="cuda"))
    return model


def test_it_applies_to_one_divergence_of_plain_heads_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = cast(object, lambda *parts: "Liger")
    student, capped = tiny_student(), tiny_model("gemma2")
    live, of_capped = LiveTargets(tiny_model(), TOKENS), LiveTargets(capped, TOKENS)
    text = TextTargets(TOKENS, torch.device("cpu"))
    monkeypatch.setattr("evaluators.distillation.module.liger_installed", lambda: True)
    monkeypatch.setattr("evaluators.distillation.module.fused_sum", applied)
    assert fused_loss(student, live, Loss()) is None, "on the host"
    as_if_on_a_gpu(student, monkeypatch)
    monkeypatch.setattr("evaluators.distillation.module.is_plain_head", lambda model: model is not capped)
    for terms in ("forward-kl", "reverse-kl", "2*jensen-shannon"):
        assert fused_loss(student, live, Loss.parse(terms)) is not None
    for terms in ("mse", "cross-entropy", "0.5*forward-kl+0.5*cross-entropy"):
        assert fused_loss(student, live, Loss.parse(terms)) is None
    assert fused_loss(student, text, Loss()) is None
    assert fused_loss(student, of_capped, Loss()) is None
    monkeypatch.setattr("evaluators.distillation.module.liger_installed", lambda: False)
    assert fused_loss(student, live, Loss()) is None
