"""The number of bits in which a causal language model could write a text down.

Every token is counted once and predicted from nothing but tokens before it, so the sum is the
length of a code that a decoder with the same model can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

#: Target of a position that is not counted; PyTorch's own default.
_NOT_COUNTED = -100


@dataclass(frozen=True)
class Windows:
    """How a long text is shown to a model of limited length."""

    length: int
    """Tokens a window."""
    stride: int
    """Tokens from the start of a window to the start of the next; ``length`` for blocks side by side."""

    def __post_init__(self) -> None:
        """Refuse windows that would leave tokens out."""
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"stride must be from 1 to the length; {self.stride} of {self.length}")

    def cut(self, tokens: Sequence[int], bos: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the inputs and targets of each window, at most ``length`` tokens each.

        BOS stands before the first token of the text; a later window begins with the token before
        its first target. Targets that an earlier window has counted are masked.
        """
        shown = [bos, *tokens]
        counted = 0
        for start in range(0, len(tokens), self.stride):
            targets = list(tokens[start : start + self.length])
            masked = counted - start
            counted = start + len(targets)
            yield shown[start:counted], [_NOT_COUNTED] * masked + targets[masked:]
            if counted == len(tokens):
                return


def bits(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], bos: int, windows: Windows, batch: int = 32
) -> float:
    """Code length of the documents in bits: the sum of -log₂ P over all their tokens.

    Args:
        model: in evaluation mode; its vocabulary covers all tokens.
        documents: the tokens of each, without BOS.
        bos: the token that stands before a document.
        windows: what the model sees at once.
        batch: windows at once.
    """
    rows = [row for tokens in documents for row in windows.cut(tokens, bos)]
    rows.sort(key=lambda row: len(row[0]))
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            inputs, targets = zip(*rows[start : start + batch], strict=True)
            logits = model(input_ids=_padded(inputs, bos, model.device)).logits.float()
            wanted = _padded(targets, _NOT_COUNTED, model.device)
            nats += F.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=_NOT_COUNTED, reduction="sum"
            ).item()
    return nats / math.log(2)


def _padded(rows: Sequence[list[int]], filling: int, device: torch.device) -> Tensor:
    """(B, T) the rows filled on the right, where no token of a causal model looks."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filling] * (longest - len(row)) for row in rows], device=device)
