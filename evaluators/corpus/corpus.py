"""From what the user names to token blocks: found, read, split, packed and kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import Corpus, fingerprint_of
from evaluators.corpus.cache import Kept
from evaluators.corpus.filling import Filling, fill
from evaluators.corpus.sources import Source, find_source
from evaluators.corpus.split import Split
from evaluators.huggingface.hub import HubUnavailableError
from evaluators.huggingface.quiet import quiet
from space.input_error import InputError

__all__ = ["Corpus", "CorpusRequest", "read_corpus"]

logger = logging.getLogger(__name__)
#: Part of the cache's key: raise it when the same request would read other blocks than before.
_VERSION = 1


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
    kept = Kept(cache, _key(request, source, tokenizer))
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
    with quiet():
        filled = fill(source.documents(version), tokenizer, request.block, request.wanted)
    _refuse_too_little(filled, source)
    blocks = {split: filling.cut() for split, filling in filled.items()}
    return Corpus(
        id=source.id,
        calibration=blocks[Split.CALIBRATION],
        distillation=blocks[Split.DISTILLATION],
        validation=blocks[Split.VALIDATION],
        validation_bytes=filled[Split.VALIDATION].cut_bytes(tokenizer),
        fingerprint=fingerprint_of(blocks),
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


def _refuse_too_little(filled: Mapping[Split, Filling], source: Source) -> None:
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
