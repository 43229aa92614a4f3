"""Turn the text that a user names into token blocks, and cache them.

A cached file is used only if its blocks match the fingerprint stored with them, so a damaged or foreign file
is ignored.
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
#: Part of the cache's key: increase it whenever the same request would give other blocks than before.
_VERSION = 1


@dataclass(frozen=True)
class CorpusCache:
    """The cached corpora for one request; they differ in the version of the text.

    Attributes:
        folder: the folder of the cache.
        key: SHA-256 over everything that decides the blocks except the text itself.
    """

    folder: Path
    key: str

    def load(self, version: str) -> Corpus | None:
        """Return the corpus of a version of the text; None if there is no intact one."""
        path = self._path(version)
        return _read_cached(path, {"key": self.key, "version": version}) if path.exists() else None

    def newest(self) -> Corpus | None:
        """Return the corpus cached last, of any version of the text; None if there is no intact one."""
        paths = self.folder.glob(f"corpus-{self.key[:16]}-*.safetensors")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            if corpus := _read_cached(path, {"key": self.key}):
                return corpus
        return None

    def save(self, corpus: Corpus, version: str) -> None:
        """Cache a corpus; the file appears under its name only when it is complete."""
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


def _read_cached(path: Path, expected: dict[str, str]) -> Corpus | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            blocks = {split: file.get_tensor(split.value) for split in Split}
        matches = all(metadata.get(name) == value for name, value in expected.items())
        if matches and metadata["fingerprint"] == corpus_fingerprint(blocks):
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
    """Collects the documents of one split.

    Attributes:
        block: T, the tokens per block.
        blocks: the largest number of blocks to cut.
        tokens: the tokens of each document, its separator included.
        bytes: the UTF-8 bytes of each document's text.
        held: the number of tokens of all documents.
    """

    block: int
    blocks: int
    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    held: int = 0

    @property
    def full(self) -> bool:
        """Whether there are enough tokens for all blocks."""
        return self.held >= self.block * self.blocks

    def add(self, tokens: list[int], text: str) -> None:
        """Add a document: its tokens with the separator, and its text."""
        self.tokens.append(np.array(tokens, dtype=np.int32))
        self.bytes.append(len(text.encode()))
        self.held += len(tokens)

    def cut(self) -> Tensor:
        """Return (N, T) int32: the concatenated documents, without the rest after the last full block."""
        count = min(self.blocks, self.held // self.block)
        flat = np.concatenate([*self.tokens, np.empty(0, dtype=np.int32)])[: count * self.block]
        return torch.from_numpy(flat).view(count, self.block)

    def cut_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the UTF-8 bytes of the text within the blocks, separators not counted.

        Of a document that the end of the last block cuts, the decoded text of its first tokens counts.
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
    """Read documents until every split is full or the text ends.

    Args:
        documents: in the order in which they are used.
        tokenizer: the teacher's.
        block: T, the tokens per block.
        wanted: the largest number of blocks of each split.
    """
    builders = {split: SplitBuilder(block, blocks) for split, blocks in wanted.items()}
    seen = 0
    for batch in batches(documents):
        needed = [document for document in batch if not builders[split_of(document.name)].full]
        texts = [document.text for document in needed]
        for document, tokens in zip(
            needed, tokenize_documents(texts, tokenizer) if texts else [], strict=True
        ):
            builders[split_of(document.name)].add(tokens, document.text)
        seen += len(batch)
        if seen // _LOG_EVERY_DOCUMENTS > (seen - len(batch)) // _LOG_EVERY_DOCUMENTS:
            logger.info("read %d documents, %s", seen, _progress(builders))
        if all(builder.full for builder in builders.values()):
            break
    return builders


def _progress(builders: Mapping[Split, SplitBuilder]) -> str:
    return ", ".join(
        f"{split}: {min(builder.held // builder.block, builder.blocks)} of {builder.blocks} blocks"
        for split, builder in builders.items()
    )


@dataclass(frozen=True, kw_only=True)
class CorpusRequest:
    """Which text to read, and how much of it."""

    data: str | None
    """A file (.txt, .jsonl, .parquet), a folder or glob of such, or a hub dataset (``ID``, ``ID@REVISION``
    or ``ID:CONFIG``); None: the default text of the teacher."""
    block: int
    """T, the tokens per block."""
    calibration_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""
    distillation_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""
    validation_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""

    @property
    def wanted(self) -> dict[Split, int]:
        """The largest number of blocks of each split."""
        return {
            Split.CALIBRATION: self.calibration_blocks,
            Split.DISTILLATION: self.distillation_blocks,
            Split.VALIDATION: self.validation_blocks,
        }


def read_corpus(
    request: CorpusRequest, tokenizer: PreTrainedTokenizerBase, default: str, cache: Path
) -> Corpus:
    """Read, tokenise, split and pack a text, or load the blocks from the cache.

    If the hub cannot be reached, the corpus cached last is used.

    Args:
        request: which text, and how much of it.
        tokenizer: the teacher's.
        default: the text to read if the request names none: ``stdlib`` or a hub dataset.
        cache: the folder of cached corpora.

    Raises:
        InputError: the text cannot be found or read, or a split gets less than one block of it.
    """
    assert request.block > 0
    assert all(blocks > 0 for blocks in request.wanted.values())
    source = find_source(request.data or default)
    cached = CorpusCache(cache, _key(request, source, tokenizer))
    try:
        version = source.version()
    except HubUnavailableError as error:
        corpus = cached.newest()
        if corpus is None:
            raise
        logger.warning("reusing the text of %s, read and tokenised before: %s", source.id, error.values)
        return corpus
    corpus = cached.load(version)
    if corpus is not None:
        logger.info("reusing the text of %s, read and tokenised before", source.id)
        return replace(corpus, id=source.id)
    logger.info("reading the text of %s", source.id)
    corpus = _read(request, source, version, tokenizer)
    cached.save(corpus, version)
    return corpus


def _read(request: CorpusRequest, source: Source, version: str, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    with quiet_libraries():
        builders = build_splits(source.documents(version), tokenizer, request.block, request.wanted)
    _refuse_too_little(builders, source)
    blocks = {split: builder.cut() for split, builder in builders.items()}
    return Corpus(
        id=source.id,
        calibration=blocks[Split.CALIBRATION],
        distillation=blocks[Split.DISTILLATION],
        validation=blocks[Split.VALIDATION],
        validation_bytes=builders[Split.VALIDATION].cut_bytes(tokenizer),
        fingerprint=corpus_fingerprint(blocks),
    )


def _key(request: CorpusRequest, source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of everything that decides the blocks except the version of the text."""
    wanted = {split.value: blocks for split, blocks in request.wanted.items()}
    parts = [_VERSION, source.identity, request.block, wanted, tokenizer_fingerprint(tokenizer)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what decides a tokenizer's output: rules, vocabulary and separators."""
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = [type(tokenizer).__name__, rules, vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _refuse_too_little(builders: Mapping[Split, SplitBuilder], source: Source) -> None:
    if all(builder.held >= builder.block for builder in builders.values()):
        return
    block = next(iter(builders.values())).block
    tokens = ", ".join(f"{builder.held} tokens for {split}" for split, builder in builders.items())
    documents = sum(len(builder.tokens) for builder in builders.values())
    raise InputError(
        f"calibration, distillation and validation need at least one block of {block} tokens each",
        f"{source.id} has {tokens}, in {documents} documents, of which about one in 20 each goes to "
        "calibration and validation",
        f"Give a text of at least {40 * block} tokens in 100 documents or more",
    )
