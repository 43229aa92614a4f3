"""Documents to blocks of the three splits: read until each has what it wants, and no further."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.documents import Document
from evaluators.corpus.packing import batches, tokenised
from evaluators.corpus.split import Split, split_of

logger = logging.getLogger(__name__)
_LOG_EVERY_DOCUMENTS = 10_000


@dataclass
class Filling:
    """The documents of one split, as they are read.

    Attributes:
        block: T, tokens a block.
        blocks: how many are wanted at most.
        tokens: of each document, its separator included.
        bytes: UTF-8 bytes of each document's text.
        held: tokens in all.
    """

    block: int
    blocks: int
    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    held: int = 0

    @property
    def full(self) -> bool:
        """Whether all blocks that are wanted can be cut."""
        return self.held >= self.block * self.blocks

    def add(self, tokens: list[int], text: str) -> None:
        """Add a document: its tokens with the separator, and its text."""
        self.tokens.append(np.array(tokens, dtype=np.int32))
        self.bytes.append(len(text.encode()))
        self.held += len(tokens)

    def cut(self) -> Tensor:
        """(N, T) int32: the documents end to end; what is left after the last full block is dropped."""
        count = min(self.blocks, self.held // self.block)
        flat = np.concatenate([*self.tokens, np.empty(0, dtype=np.int32)])[: count * self.block]
        return torch.from_numpy(flat).view(count, self.block)

    def cut_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """UTF-8 bytes of the text within the blocks, separators not counted.

        A document that is cut by the end of the last block counts with what its first tokens
        decode to.
        """
        left = min(self.blocks, self.held // self.block) * self.block
        total = 0
        for tokens, size in zip(self.tokens, self.bytes, strict=True):
            if len(tokens) > left:
                return total + _decoded_bytes(tokens[:left], tokenizer)
            total, left = total + size, left - len(tokens)
        return total


def _decoded_bytes(tokens: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> int:
    inner = tokens[1:] if tokenizer.bos_token_id is not None else tokens
    text = tokenizer.decode(inner.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return len(text.rstrip("\ufffd").encode())


def fill(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, block: int, wanted: Mapping[Split, int]
) -> dict[Split, Filling]:
    """Read documents until every split is full or the text is at its end.

    Args:
        documents: in the order in which they are to be used.
        tokenizer: the teacher's.
        block: T, tokens a block.
        wanted: blocks of each split, at most.
    """
    filled = {split: Filling(block, blocks) for split, blocks in wanted.items()}
    seen = 0
    for batch in batches(documents):
        needed = [document for document in batch if not filled[split_of(document.name)].full]
        texts = [document.text for document in needed]
        for document, tokens in zip(needed, tokenised(texts, tokenizer) if texts else [], strict=True):
            filled[split_of(document.name)].add(tokens, document.text)
        seen += len(batch)
        if seen // _LOG_EVERY_DOCUMENTS > (seen - len(batch)) // _LOG_EVERY_DOCUMENTS:
            logger.info("read %d documents, %s", seen, _progress(filled))
        if all(filling.full for filling in filled.values()):
            break
    return filled


def _progress(filled: Mapping[Split, Filling]) -> str:
    return ", ".join(
        f"{split}: {min(filling.held // filling.block, filling.blocks)} of {filling.blocks} blocks"
        for split, filling in filled.items()
    )
