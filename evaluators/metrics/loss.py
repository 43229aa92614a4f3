"""The loss objective: cross-entropy on the validation blocks, and its conversion to other units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size

#: Tokens of one forward pass.
_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def validation_loss(model: PreTrainedModel, blocks: Tensor) -> float:
    """Return the mean cross-entropy of the next token, in nats per token; NaN if the model returns NaN.

    Args:
        model: in evaluation mode.
        blocks: (N, T) token ids; the first token of a block is not predicted.
    """
    assert not model.training, "losses are measured in evaluation mode"
    total = torch.zeros((), dtype=torch.float64)
    rows = max(1, _TOKENS_AT_ONCE // blocks.shape[1])
    size = token_slice(vocabulary_size(model))
    for batch in blocks.split(rows):
        tokens = batch.to(device=model.device, dtype=torch.long)
        states = final_states(model, tokens)[:, :-1].flatten(0, 1)
        nexts = tokens[:, 1:].flatten()
        for some, targets in zip(states.split(size), nexts.split(size), strict=True):
            logits = logits_of(model, some).float()
            total += nn.functional.cross_entropy(logits, targets, reduction="sum").cpu()
    return float(total) / (blocks.shape[0] * (blocks.shape[1] - 1))


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Convert a loss to bits per byte of text, which is comparable between tokenizers.

    Args:
        loss: nats per token.
        tokens: tokens of the text.
        text_bytes: UTF-8 bytes of the same text.
    """
    return loss * tokens / text_bytes / math.log(2)


def perplexity(loss: float) -> float:
    """Return the perplexity of a loss in nats per token; infinite if a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
