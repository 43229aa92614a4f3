"""Text to blocks: tokenised documents laid end to end and cut into rows of equal length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 64

_Item = TypeVar("_Item")


def separated(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A document's tokens with its boundary: begun by BOS, or ended by EOS where there is no BOS."""
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id, *tokens]
    if tokenizer.eos_token_id is not None:
        return [*tokens, tokenizer.eos_token_id]
    return tokens


def tokenised(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each text's tokens with its boundary.

    ``verbose=False`` keeps the tokenizer from warning that a document is longer than the model's
    context: blocks are cut to length afterwards.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [separated(document, tokenizer) for document in encoded]


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, most: int | None = None
) -> Tensor:
    """Pack texts into blocks.

    Args:
        texts: the documents, in order.
        tokenizer: the teacher's.
        length: T, tokens a block.
        most: stop reading after this many blocks; None reads all.

    Returns:
        (N, T) int32. The tokens after the last full block are dropped.
    """
    tokens: list[int] = []
    for batch in batches(texts):
        for document in tokenised(batch, tokenizer):
            tokens.extend(document)
        if most is not None and len(tokens) >= most * length:
            break
    blocks = len(tokens) // length if most is None else min(most, len(tokens) // length)
    return torch.tensor(tokens[: blocks * length], dtype=torch.int32).view(blocks, length)


def batches(items: Iterable[_Item], size: int = _DOCUMENTS_AT_ONCE) -> Iterator[list[_Item]]:
    """The items in lists of ``size``, the last one shorter."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
