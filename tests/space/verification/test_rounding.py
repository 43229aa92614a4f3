"""What counts as rounding when a student is compared with the masked teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from space.axes.architecture import Axis
from space.discovery.discovery import discover
from space.verification import contract
from space.verification.contract import TOLERANCE, contract_breach, contract_tokens, logits_of, rounding
from tests.evaluators.tiny_models import tiny_model
from tests.verified_once import verify_anew


def sensitive(_: Any, __: Any, logits: Tensor) -> Tensor:
    """Moves a hundred thousand times as far as what it reads."""
    return logits + torch.sin(1e5 * logits)


def test_an_ordinary_model_moves_less_than_the_tolerance() -> None:
    model = tiny_model("llama")
    tokens = contract_tokens(37)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    assert 0 < rounding(model, tokens, logits_of(model, tokens)) < 0.1 * TOLERANCE
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_sensitive_one_moves_further() -> None:
    model = tiny_model("llama")
    model.get_output_embeddings().register_forward_hook(sensitive)
    tokens = contract_tokens(37)
    assert rounding(model, tokens, logits_of(model, tokens)) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("apart", "moves", "right"), [(2e-4, 2e-4, True), (2e-4, 5e-5, False), (0.02, 1, False)]
)
def test_a_difference_is_rounding_if_it_is_as_far(
    apart: float, moves: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", vocab_size=64)
    axis_map = discover(model.config).axis_map
    monkeypatch.setattr(contract, "distance", lambda *_: apart)
    monkeypatch.setattr(contract, "rounding", lambda *_: moves)
    assert (contract_breach(model, axis_map, {Axis.MLP}, 0) is None) is right


@pytest.mark.slow
def test_a_class_with_routers_and_recurrences_passes_on_every_machine() -> None:
    """On some, rounding moves logits of a student of it by four tolerances."""
    found = verify_anew(CONFIG_MAPPING["qwen3_next"]())
    assert found.small.refused == {}
    assert Axis.HIDDEN in found.small.free
