"""Token blocks: documents are split by name, tokenised, concatenated and cut into rows of equal length."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.layout import Layout, usual_layout

#: Of 20 documents one is for validation and one for calibration; the rest is for distillation.
_BUCKETS = 20
_DOCUMENTS_AT_ONCE = 64
_Item = TypeVar("_Item")


def fingerprint(*parts: str | int | Tensor) -> str:
    """Return the SHA-256 (hexadecimal) of texts, numbers and tensors, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            content = f"{part.dtype} {tuple(part.shape)} ".encode() + part.contiguous().numpy().tobytes()
        else:
            content = str(part).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class Split(StrEnum):
    """The three uses of text in a run."""

    CALIBRATION = "calibration"
    DISTILLATION = "distillation"
    VALIDATION = "validation"


def split_of(name: str) -> Split:
    """Return the split of the document called ``name``, by a hash that is the same on every machine.

    The embedded teacher was trained on everything but the validation split, so this function must
    not change unless that teacher is trained again.
    """
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _BUCKETS
    return {0: Split.VALIDATION, 1: Split.CALIBRATION}.get(bucket, Split.DISTILLATION)


@dataclass(frozen=True)
class CorpusSource:
    """One text of a mixture."""

    id: str
    """What the user named."""
    share: float
    """Its share of the tokens."""
    distillation_blocks: int
    """Blocks of the distillation set that are its; some more than once if ``times`` is above 1."""
    validation_blocks: int
    times: float
    """How often its text is read in the distillation set."""


@dataclass(frozen=True)
class Corpus:
    """The token blocks of the three splits; N differs between them, T is the same.

    Attributes:
        id: what the user named, or "the Python standard library".
        calibration: (N, T) int32.
        distillation: (N, T) int32, in the order in which training reads it: that of the documents, or
            a shuffled one after ``mixed``.
        validation: (N, T) int32.
        validation_bytes: UTF-8 bytes of the text of the validation blocks, separators not counted.
        fingerprint: SHA-256 over the blocks of the three splits.
        distillation_learnt: (N, T) bool, True at each token whose next one is to be learnt; None: all are. At
            the end of a block it is the first token that follows in the text.
        validation_learnt: the same of the validation blocks, on whose losses these tokens alone count.
        layout: what separates documents and begins blocks.
        sources: of a mixture, where its blocks come from, in the order of the validation blocks.
        long: (M, L) int32, longer blocks for the last part of retraining; None: there is none.
        long_learnt: (M, L) bool as ``distillation_learnt``.
    """

    id: str
    calibration: Tensor
    distillation: Tensor
    validation: Tensor
    validation_bytes: int
    fingerprint: str
    distillation_learnt: Tensor | None = None
    validation_learnt: Tensor | None = None
    layout: Layout = field(default_factory=Layout)
    sources: tuple[CorpusSource, ...] = ()
    long: Tensor | None = None
    long_learnt: Tensor | None = None

    @property
    def block(self) -> int:
        """T, the tokens per block."""
        return self.validation.shape[1]

    @property
    def blocks(self) -> dict[Split, Tensor]:
        """The blocks of each split."""
        return {
            Split.CALIBRATION: self.calibration,
            Split.DISTILLATION: self.distillation,
            Split.VALIDATION: self.validation,
        }

    def shortened(self, blocks: int) -> Corpus:
        """Return a corpus with at most that many distillation blocks, the first."""
        learnt = self.distillation_learnt
        return replace(
            self,
            distillation=self.distillation[:blocks],
            distillation_learnt=None if learnt is None else learnt[:blocks],
        )

    def mixed(self) -> Corpus:
        """Return a corpus with shuffled distillation blocks, so that those of a document lie apart.

        The order is always the same. Batches of neighbouring blocks teach less (studies/LOG.md).
        """
        places = list(range(len(self.distillation)))
        random.Random(0).shuffle(places)
        learnt = self.distillation_learnt
        return replace(
            self,
            distillation=self.distillation[places],
            distillation_learnt=None if learnt is None else learnt[places],
        )


def lengthened(blocks: Tensor, length: int, beginning: bool) -> Tensor:
    """Join consecutive blocks of a text to longer ones.

    Args:
        blocks: (N, T) tokens, or which of them are learnt.
        length: L, tokens of a longer block.
        beginning: whether the first token of each block is no text, but what begins a block.

    Returns:
        (M, L): as many as there are whole ones. Where blocks do not fill one exactly, the rest is left out.
    """
    joined = blocks_joined(blocks.shape[1], length, beginning)
    groups = blocks[: len(blocks) // joined * joined].unflatten(0, (-1, joined))
    text = groups[:, :, int(beginning) :].flatten(1)[:, : length - beginning]
    return torch.cat([groups[:, 0, : int(beginning)], text], dim=1)


def blocks_joined(block: int, length: int, beginning: bool) -> int:
    """Return how many blocks make a longer one; arguments as in ``lengthened``."""
    return -(-(length - beginning) // (block - beginning))


def corpus_fingerprint(blocks: Mapping[Split, Tensor], others: Mapping[str, Tensor] | None = None) -> str:
    """Return the SHA-256 (hexadecimal) of the names, shapes and contents of the splits.

    Args:
        blocks: the tokens of each split.
        others: what is learnt of them, and long blocks, by the names of the fields of ``Corpus``.
    """
    digest = hashlib.sha256()
    for name, tensor in [*((split, blocks[split]) for split in Split), *sorted((others or {}).items())]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, most: int | None = None
) -> Tensor:
    """Concatenate the tokens of texts and cut them into blocks.

    Args:
        texts: the documents, in order.
        tokenizer: the teacher's.
        length: T, the tokens per block.
        most: stop reading after this many blocks; None reads all.

    Returns:
        (N, T) int32. The tokens after the last full block are dropped.
    """
    tokens: list[int] = []
    layout = usual_layout(tokenizer)
    for batch in batches(texts):
        # verbose=False suppresses the warning that a document is longer than the model's context.
        for document in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens.extend(layout.separated(document))
        if most is not None and len(tokens) >= most * length:
            break
    blocks = len(tokens) // length if most is None else min(most, len(tokens) // length)
    return torch.tensor(tokens[: blocks * length], dtype=torch.int32).view(blocks, length)


def batches(items: Iterable[_Item], size: int = _DOCUMENTS_AT_ONCE) -> Iterator[list[_Item]]:
    """Yield the items in lists of ``size``; the last one may be shorter."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
