"""The shares of tokens: half from the text, half from what the model expects, against their definition."""

from __future__ import annotations

import torch

from evaluators.importance.token_mass import token_mass
from tests.evaluators.tiny_models import tiny_model


def test_a_share_is_half_of_the_text_and_half_of_what_is_expected() -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    blocks = torch.randint(vocabulary // 2, (3, 8), generator=generator)
    told: list[int] = []
    found = token_mass(model, blocks, told.append)
    with torch.no_grad():
        expected = model(blocks).logits.double().softmax(-1).mean((0, 1))
    written = torch.bincount(blocks.flatten(), minlength=vocabulary).double() / blocks.numel()
    torch.testing.assert_close(found, (written + expected) / 2, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert sum(told) == blocks.numel()
