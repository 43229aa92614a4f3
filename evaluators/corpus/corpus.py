"""From what the user names to token blocks: found, read, split, packed and kept.

A file is taken only if its blocks match the fingerprint written beside them, so a torn file, or
one that something else wrote, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import Corpus, Split, batches, corpus_fingerprint, split_of, tokenize_documents
from evaluators.corpus.documents import Document
from evaluators.corpus.sources import Source, find_source
from evaluators.huggingface.hub import HubUnavailableError
from evaluators.huggingface.library_output import quiet_libraries
from space.input_error import InputError

__all__ = ["Corpus", "CorpusRequest", "read_corpus"]

logger = logging.getLogger(__name__)
_LOG_EVERY_DOCUMENTS = 10_000
#: Part of the cache's key: raise it when the same request would read other blocks than before.
_VERSION = 1


@dataclass(frozen=True)
class CorpusCache:
    """The corpora in a folder that one request could use.

    Attributes:
        folder: where they lie.
        key: SHA-256 over all that decides the blocks but the text itself.
    """

    folder: Path
    key: str

    def load(self, version: str) -> Corpus | None:
        """The corpus of a version of the text; None if there is none that is whole."""
        path = self._path(version)
        return _read_kept(path, {"key": self.key, "version": version}) if path.exists() else None

    def newest(self) -> Corpus | None:
        """The corpus kept last of whatever version of the text; None if there is none that is whole."""
        paths = self.folder.glob(f"corpus-{self.key[:16]}-*.safetensors")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            if corpus := _read_kept(path, {"key": self.key}):
                return corpus
        return None

    def save(self, corpus: Corpus, version: str) -> None:
        """Keep a corpus: written under another name first, so that no half of it is ever found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "id": corpus.id,
            "key": self.key,
            "version": version,
            "validation_bytes": str(corpus.validation_bytes),
            "fingerprint": corpus.fingerprint,
        }
        blocks = {split.value: tokens.contiguous() for split, tokens in corpus.blocks.items()}
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".new")
        os.close(descriptor)
        try:
            save_file(blocks, name, metadata)
            os.replace(name, self._path(version))
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, version: str) -> Path:
        return self.folder / f"corpus-{self.key[:16]}-{version[:16]}.safetensors"


def _read_kept(path: Path, expected: dict[str, str]) -> Corpus | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            blocks = {split: file.get_tensor(split.value) for split in Split}
        meant = all(metadata.get(name) == value for name, value in expected.items())
        if meant and metadata["fingerprint"] == corpus_fingerprint(blocks):
            return Corpus(
                id=metadata["id"],
                calibration=blocks[Split.CALIBRATION],
                distillation=blocks[Split.DISTILLATION],
                validation=blocks[Split.VALIDATION],
                validation_bytes=int(metadata["validation_bytes"]),
                fingerprint=metadata["fingerprint"],
            )
        reason = "its content is not what it says"
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("the kept text %s cannot be used (%s); reading the text anew", path, reason)
    return None


@dataclass
class SplitBuilder:
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


def build_splits(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, block: int, wanted: Mapping[Split, int]
) -> dict[Split, SplitBuilder]:
    """Read documents until every split is full or the text is at its end.

    Args:
        documents: in the order in which they are to be used.
        tokenizer: the teacher's.
        block: T, tokens a block.
        wanted: blocks of each split, at most.
    """
    filled = {split: SplitBuilder(block, blocks) for split, blocks in wanted.items()}
    seen = 0
    for batch in batches(documents):
        needed = [document for document in batch if not filled[split_of(document.name)].full]
        texts = [document.text for document in needed]
        for document, tokens in zip(
            needed, tokenize_documents(texts, tokenizer) if texts else [], strict=True
        ):
            filled[split_of(document.name)].add(tokens, document.text)
        seen += len(batch)
        if seen // _LOG_EVERY_DOCUMENTS > (seen - len(batch)) // _LOG_EVERY_DOCUMENTS:
            logger.info("read %d documents, %s", seen, _progress(filled))
        if all(filling.full for filling in filled.values()):
            break
    return filled


def _progress(filled: Mapping[Split, SplitBuilder]) -> str:
    return ", ".join(
        f"{split}: {min(filling.held // filling.block, filling.blocks)} of {filling.blocks} blocks"
        for split, filling in filled.items()
    )


@dataclass(frozen=True, kw_only=True)
class CorpusRequest:
    """How much text is wanted, and from where."""

    data: str | None
    """A file (.txt, .jsonl, .parquet), a folder or glob of such, or a hub dataset id (``ID`` or
    ``ID:CONFIG``); None: the default text of the teacher."""
    block: int
    """T, tokens a block."""
    calibration_blocks: int
    """At most; fewer when the text has fewer."""
    distillation_blocks: int
    """At most; fewer when the text has fewer."""
    validation_blocks: int
    """At most; fewer when the text has fewer."""

    @property
    def wanted(self) -> dict[Split, int]:
        """Blocks of each split, at most."""
        return {
            Split.CALIBRATION: self.calibration_blocks,
            Split.DISTILLATION: self.distillation_blocks,
            Split.VALIDATION: self.validation_blocks,
        }


def read_corpus(
    request: CorpusRequest, tokenizer: PreTrainedTokenizerBase, default: str, cache: Path
) -> Corpus:
    """Read, tokenise, split and pack the text, or take it from the cache.

    Args:
        request: what is wanted.
        tokenizer: the teacher's.
        default: the text to read when the request names none: ``stdlib`` or a hub dataset id.
        cache: folder of the corpora already read.

    Raises:
        InputError: the text cannot be found or read, or a split has less than one block of it.
    """
    assert request.block > 0
    assert all(blocks > 0 for blocks in request.wanted.values())
    source = find_source(request.data or default)
    kept = CorpusCache(cache, _key(request, source, tokenizer))
    try:
        version = source.version()
    except HubUnavailableError as error:
        corpus = kept.newest()
        if corpus is None:
            raise
        logger.warning("reusing the text of %s, read and tokenised before: %s", source.id, error.values)
        return corpus
    corpus = kept.load(version)
    if corpus is not None:
        logger.info("reusing the text of %s, read and tokenised before", source.id)
        return replace(corpus, id=source.id)
    logger.info("reading the text of %s", source.id)
    corpus = _read(request, source, version, tokenizer)
    kept.save(corpus, version)
    return corpus


def _read(request: CorpusRequest, source: Source, version: str, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    with quiet_libraries():
        filled = build_splits(source.documents(version), tokenizer, request.block, request.wanted)
    _refuse_too_little(filled, source)
    blocks = {split: filling.cut() for split, filling in filled.items()}
    return Corpus(
        id=source.id,
        calibration=blocks[Split.CALIBRATION],
        distillation=blocks[Split.DISTILLATION],
        validation=blocks[Split.VALIDATION],
        validation_bytes=filled[Split.VALIDATION].cut_bytes(tokenizer),
        fingerprint=corpus_fingerprint(blocks),
    )


def _key(request: CorpusRequest, source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides the blocks but the version of the text."""
    wanted = {split.value: blocks for split, blocks in request.wanted.items()}
    parts = [_VERSION, source.identity, request.block, wanted, tokenizer_fingerprint(tokenizer)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides a tokenizer's output: its rules, vocabulary and separators."""
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = [type(tokenizer).__name__, rules, vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _refuse_too_little(filled: Mapping[Split, SplitBuilder], source: Source) -> None:
    if all(filling.held >= filling.block for filling in filled.values()):
        return
    block = next(iter(filled.values())).block
    tokens = ", ".join(f"{filling.held} tokens for {split}" for split, filling in filled.items())
    documents = sum(len(filling.tokens) for filling in filled.values())
    raise InputError(
        f"calibration, distillation and validation need at least one block of {block} tokens each",
        f"{source.id} has {tokens}, in {documents} documents, of which about one in 20 each goes to "
        "calibration and validation",
        f"Give a text of at least {40 * block} tokens in 100 documents or more",
    )
