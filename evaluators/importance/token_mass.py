"""How much of a text falls to each token: its share of the text, and of what the teacher expects there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size

#: Tokens of one forward pass.
_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def token_mass(
    model: PreTrainedModel, blocks: Tensor, advance: Callable[[int], None] = lambda tokens: None
) -> Tensor:
    """Return (V,) float64 shares of the tokens, which sum to 1.

    Half of a token's share is how often the text has it, half the mean probability that the teacher gives it
    there: a token that a text happens not to have may still be one that the teacher would write.

    Args:
        model: the teacher, in evaluation mode, on its device.
        blocks: (N, T) token ids of the calibration set.
        advance: called with the number of tokens that are read.
    """
    vocabulary = vocabulary_size(model)
    expected = torch.zeros(vocabulary, dtype=torch.float64, device=model.device)
    for batch in blocks.split(max(1, _TOKENS_AT_ONCE // blocks.shape[1])):
        tokens = batch.to(device=model.device, dtype=torch.long)
        for some in final_states(model, tokens).flatten(0, 1).split(token_slice(vocabulary)):
            expected += logits_of(model, some).float().softmax(-1).sum(0)
        advance(batch.numel())
    written = torch.bincount(blocks.flatten().long(), minlength=vocabulary)
    return (written + expected.cpu()) / (2 * blocks.numel())
