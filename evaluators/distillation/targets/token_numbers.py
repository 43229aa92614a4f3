"""Token numbers in as few bytes as their vocabulary asks for."""

from __future__ import annotations

import torch
from torch import Tensor


def bytes_each(vocabulary: int) -> int:
    """Of one token number: 2 up to 65,536 tokens, else 4."""
    return 2 if vocabulary <= 2**16 else 4


def packed(ids: Tensor, vocabulary: int) -> Tensor:
    """Token numbers of any shape as int16, those from 32,768 on as negative numbers, or as int32."""
    return ids.to(torch.int16 if bytes_each(vocabulary) == 2 else torch.int32)


def unpacked(numbers: Tensor) -> Tensor:
    """int64 token numbers, from what ``packed`` gave."""
    return numbers.long() & 0xFFFF if numbers.dtype == torch.int16 else numbers.long()
