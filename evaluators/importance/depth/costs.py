"""What it costs to be without some layers, from the final states: loss, or divergence from the teacher.

Logits exist for a slice of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import logits_of, token_slice, vocabulary

#: Of final states (B, T, D): the sum of the costs of their tokens in nats, and the number of summands.
Cost = Callable[[Tensor], tuple[float, int]]


class Loss:
    """Cross-entropy of the next token, in nats."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        assert tokens.shape[1] > 1, "a block of one token has none to predict"
        self.model, self.nexts = model, tokens[:, 1:].flatten()

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """The sum over the predicted tokens, and their number.

        Args:
            states: (B, T, D) final states.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.nexts.device)
        size = token_slice(vocabulary(self.model))
        rows = states[:, :-1].flatten(0, 1)
        for some, targets in zip(rows.split(size), self.nexts.split(size), strict=True):
            logits = logits_of(self.model, some).float()
            total += nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum").to(total)
        return float(total), len(self.nexts)


class Divergence:
    """KL(p‖q) = Σ p (log p − log q) in nats, with p the whole teacher's and q those of other states."""

    def __init__(self, model: PreTrainedModel, whole: Tensor) -> None:
        self.model, self.whole = model, whole.flatten(0, 1)

    def __call__(self, states: Tensor) -> tuple[float, int]:
        """The sum over the tokens, and their number.

        Args:
            states: (B, T, D) final states.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.whole.device)
        size = token_slice(2 * vocabulary(self.model))
        rows = states.flatten(0, 1)
        for some, wanted in zip(rows.split(size), self.whole.split(size), strict=True):
            p, q = (logits_of(self.model, part).float().log_softmax(-1) for part in (wanted, some))
            total += nn.functional.kl_div(q, p, reduction="sum", log_target=True).to(total)
        return float(total), len(rows)
