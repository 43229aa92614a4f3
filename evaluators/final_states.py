"""A decoder in two halves: the final hidden states, and the head that turns them into logits.

Losses work on slices of tokens, so they apply the head themselves; the logits of a whole batch
never exist at once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

#: Logits held at once by a loss: 2^24 float32 values are 64 MB.
_LOGITS_AT_ONCE = 2**24


def final_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, D) the states that the head reads, after the final norm.

    Args:
        model: a causal language model.
        tokens: (B, T) token numbers.
    """
    output = model.base_model(input_ids=tokens, use_cache=False)
    return cast(Tensor, output.last_hidden_state)


def head_weight(model: PreTrainedModel) -> Tensor:
    """(V, D) the matrix of the head; it has no bias in the families at hand."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear), "the head is a plain matrix"
    assert head.bias is None, "the head has no bias"
    return head.weight


def token_slice(vocabulary: int) -> int:
    """How many tokens' logits a loss may hold at once."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)
