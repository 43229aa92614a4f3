"""Documents become tokens, and tokens the blocks of three splits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import Split, batches, split_of
from evaluators.corpus.chat import ChatWriter, Span
from evaluators.corpus.documents import Document
from evaluators.corpus.layout import Layout, usual_layout

logger = logging.getLogger(__name__)
_LOG_EVERY_DOCUMENTS = 10_000


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as the teacher reads it.

    Attributes:
        tokens: (n,) with those that separate it from others.
        bytes: UTF-8 bytes of its text.
        leading: how many of the tokens come before the text.
        learnt: (n,) which of the tokens are to be learnt; None: all are.
    """

    tokens: NDArray[np.int32]
    bytes: int
    leading: int
    learnt: NDArray[np.bool_] | None = None


class DocumentTokenizer:
    """Makes tokens of documents.

    Args:
        tokenizer: the teacher's.
        layout: what separates documents.
        answers_alone: whether of conversations the assistant's words alone are to be learnt.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, layout: Layout | None = None, answers_alone: bool = False
    ) -> None:
        self.tokenizer, self.layout = tokenizer, layout or usual_layout(tokenizer)
        self.answers_alone, self.writer = answers_alone, ChatWriter(tokenizer)

    def __call__(self, documents: Sequence[Document]) -> Iterator[TokenizedDocument]:
        """Yield the documents, in order; conversations that the chat template does not take are left out.

        Raises:
            InputError: it takes none of the first ones.
        """
        found = [read for one in documents if (read := self._read(one)) is not None]
        if not found:
            return
        # verbose=False suppresses the warning that a document is longer than the model's context.
        encoded = self.tokenizer(
            [text for text, _ in found],
            add_special_tokens=False,
            verbose=False,
            return_offsets_mapping=self.answers_alone,
        )
        offsets = encoded["offset_mapping"] if self.answers_alone else [[]] * len(found)
        for (text, answers), tokens, places in zip(found, encoded["input_ids"], offsets, strict=True):
            whole = self.layout.separated(tokens)
            leading = int(self.layout.before is not None and whole[:1] != tokens[:1])
            learnt = None
            if answers is not None:
                trailing = len(whole) - leading - len(tokens)
                learnt = np.array([*[False] * leading, *_inside(places, answers), *[False] * trailing])
            yield TokenizedDocument(np.array(whole, dtype=np.int32), len(text.encode()), leading, learnt)

    def texts(self, documents: Iterable[Document]) -> Iterator[str]:
        """Yield the texts of documents, without conversations that the chat template does not take."""
        yield from (read[0] for one in documents if (read := self._read(one)) is not None)

    def _read(self, document: Document) -> tuple[str, list[Span] | None] | None:
        """Return a document's text, and where the answers stand if these alone are learnt."""
        if document.conversation is None:
            return document.text, None
        read = self.writer.read(document.conversation, self.answers_alone)
        if read is None:
            return None
        text, answers = read
        return text, answers if self.answers_alone else None


def _inside(places: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Return whether tokens at these characters begin within one of the spans, both in order."""
    found, at = [], 0
    for start, end in places:
        while at < len(spans) and spans[at].end <= start:
            at += 1
        found.append(at < len(spans) and spans[at].start <= start < spans[at].end and end > start)
    return found


@dataclass
class SplitBuilder:
    """Collects the documents of one split.

    Attributes:
        block: T, the tokens per block.
        blocks: the largest number of blocks to cut.
        beginning: the token that every block begins with, if there is one.
        documents: what was added.
        held: the number of tokens of all documents.
    """

    block: int
    blocks: int
    beginning: int | None = None
    documents: list[TokenizedDocument] = field(default_factory=list)
    held: int = 0

    @property
    def width(self) -> int:
        """The tokens of the text in a block."""
        return self.block - (self.beginning is not None)

    @property
    def full(self) -> bool:
        """Whether there are enough tokens for all blocks."""
        return self.held >= self.width * self.blocks

    @property
    def count(self) -> int:
        """The number of blocks that can be cut."""
        return min(self.blocks, self.held // self.width)

    def add(self, document: TokenizedDocument) -> None:
        """Add a document."""
        self.documents.append(document)
        self.held += len(document.tokens)

    def cut(self) -> Tensor:
        """Return (N, T) int32: the concatenated documents, without the rest after the last full block."""
        flat = np.concatenate([*(one.tokens for one in self.documents), np.empty(0, dtype=np.int32)])
        blocks = torch.from_numpy(flat[: self.count * self.width]).view(self.count, self.width)
        if self.beginning is None:
            return blocks
        return torch.cat([torch.full((self.count, 1), self.beginning, dtype=torch.int32), blocks], dim=1)

    def cut_learnt(self) -> Tensor | None:
        """Return (N, T) bool as ``Corpus.distillation_learnt``; None if every token is learnt."""
        if all(one.learnt is None for one in self.documents):
            return None
        parts = [
            np.ones(len(one.tokens), dtype=np.bool_) if one.learnt is None else one.learnt
            for one in self.documents
        ]
        flat = np.concatenate([*parts, np.zeros(1, dtype=np.bool_)])
        size = self.count * self.width
        following = torch.from_numpy(flat[1 : size + 1]).view(self.count, self.width)
        if self.beginning is None:
            return following
        first = torch.from_numpy(flat[: size : self.width].copy())
        return torch.cat([first[:, None], following], dim=1)

    def cut_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the UTF-8 bytes of the text within the blocks, separators not counted.

        Of a document that the end of the last block cuts, the decoded text of its first tokens counts.
        """
        left, total = self.count * self.width, 0
        for one in self.documents:
            if len(one.tokens) > left:
                return total + _decoded_bytes(one.tokens[one.leading : max(left, one.leading)], tokenizer)
            total, left = total + one.bytes, left - len(one.tokens)
        return total


def _decoded_bytes(tokens: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> int:
    text = tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return len(text.rstrip("\ufffd").encode())


def build_splits(
    documents: Iterable[Document], tokenize: DocumentTokenizer, block: int, wanted: Mapping[Split, int]
) -> dict[Split, SplitBuilder]:
    """Read documents until every split is full or the text ends.

    Args:
        documents: in the order in which they are used.
        tokenize: makes tokens of them.
        block: T, the tokens per block.
        wanted: the largest number of blocks of each split.
    """
    beginning = tokenize.layout.beginning
    builders = {split: SplitBuilder(block, blocks, beginning) for split, blocks in wanted.items()}
    seen = 0
    for batch in batches(documents):
        needed = [document for document in batch if not builders[split_of(document.name)].full]
        for split in Split:
            for tokenized in tokenize([one for one in needed if split_of(one.name) is split]):
                builders[split].add(tokenized)
        seen += len(batch)
        if seen // _LOG_EVERY_DOCUMENTS > (seen - len(batch)) // _LOG_EVERY_DOCUMENTS:
            logger.info("read %d documents, %s", seen, _progress(builders))
        if all(builder.full for builder in builders.values()):
            break
    return builders


def _progress(builders: Mapping[Split, SplitBuilder]) -> str:
    return ", ".join(
        f"{split}: {min(builder.held // builder.width, builder.blocks)} of {builder.blocks} blocks"
        for split, builder in builders.items()
    )
