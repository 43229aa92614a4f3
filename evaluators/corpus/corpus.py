"""Turn a text that a user names into token blocks, and cache them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import Corpus, Split, blocks_joined, corpus_fingerprint, lengthened
from evaluators.corpus.cache import CorpusCache
from evaluators.corpus.layout import Layout, usual_layout
from evaluators.corpus.sources import Source, find_source
from evaluators.corpus.splits import DocumentTokenizer, SplitBuilder, build_splits
from evaluators.huggingface.hub import HubUnavailableError
from evaluators.huggingface.library_output import quiet_libraries
from space.input_error import InputError

__all__ = ["Corpus", "CorpusRequest", "read_corpus"]

logger = logging.getLogger(__name__)
#: Part of the cache's key: increase it whenever the same request would give other blocks than before.
_VERSION = 2
#: Which split each of the fields of ``Corpus`` that say what is learnt belongs to.
_LEARNT = {"distillation_learnt": Split.DISTILLATION, "validation_learnt": Split.VALIDATION}


@dataclass(frozen=True, kw_only=True)
class CorpusRequest:
    """Which text to read, and how much of it."""

    data: str
    """A file, a folder or glob of such, or a hub dataset (``ID``, ``ID@REVISION`` or ``ID:CONFIG``)."""
    block: int
    """T, the tokens per block."""
    calibration_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""
    distillation_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""
    validation_blocks: int
    """The largest number of blocks; fewer if the text is shorter."""
    layout: Layout | None = None
    """What separates documents; None: as the tokenizer says."""
    answers_alone: bool = False
    """Whether of conversations the assistant's words alone are to be learnt."""
    long_block: int = 0
    """L, tokens of the longer blocks; 0: there are none."""
    long_blocks: int = 0
    """The largest number of longer blocks, made of text that no other block has."""

    @property
    def wanted(self) -> dict[Split, int]:
        """The largest number of blocks of each split."""
        return {
            Split.CALIBRATION: self.calibration_blocks,
            Split.DISTILLATION: self.distillation_blocks,
            Split.VALIDATION: self.validation_blocks,
        }


def read_corpus(request: CorpusRequest, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Corpus:
    """Read, tokenise, split and pack a text, or load the blocks from the cache.

    If the hub cannot be reached, the corpus cached last is used.

    Args:
        request: which text, and how much of it.
        tokenizer: the teacher's.
        cache: the folder of cached corpora.

    Raises:
        InputError: the text cannot be found or read, or a split gets less than one block of it.
    """
    assert request.block > 0
    assert all(blocks > 0 for blocks in request.wanted.values())
    source = find_source(request.data)
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
    tokenize = DocumentTokenizer(tokenizer, request.layout, request.answers_alone)
    begun = tokenize.layout.beginning is not None
    wanted = request.wanted
    if request.long_blocks:
        joined = blocks_joined(request.block, request.long_block, begun)
        wanted[Split.DISTILLATION] += request.long_blocks * joined
    with quiet_libraries():
        builders = build_splits(source.documents(version), tokenize, request.block, wanted)
    tokenize.writer.close(source.id)
    _refuse_too_little(builders, source)
    blocks = {split: builder.cut() for split, builder in builders.items()}
    cut = {name: builders[split].cut_learnt() for name, split in _LEARNT.items()}
    learnt: dict[str, Any] = {name: mask for name, mask in cut.items() if mask is not None}
    _refuse_without_answers(learnt, source)
    others = learnt | (_split_off(request, blocks, learnt, begun, source) if request.long_blocks else {})
    return Corpus(
        id=source.id,
        calibration=blocks[Split.CALIBRATION],
        distillation=blocks[Split.DISTILLATION],
        validation=blocks[Split.VALIDATION],
        validation_bytes=builders[Split.VALIDATION].cut_bytes(tokenizer),
        fingerprint=corpus_fingerprint(blocks, others),
        layout=tokenize.layout,
        **others,
    )


def _split_off(
    request: CorpusRequest,
    blocks: dict[Split, Tensor],
    learnt: dict[str, Any],
    begun: bool,
    source: Source,
) -> dict[str, Any]:
    """Make the longer blocks from the end of the distillation set, half of it at most, which loses them.

    Raises:
        InputError: the text does not fill one.
    """
    name, everything = "distillation_learnt", blocks[Split.DISTILLATION]
    joined = blocks_joined(request.block, request.long_block, begun)
    count = min(request.long_blocks, len(everything) // (2 * joined))
    if not count:
        raise InputError(
            "a part of the text has to fill a long block",
            f"{source.id} has {everything.numel():,} tokens to learn, half of which is less than "
            f"{request.long_block:,}",
            "Leave --long-context out, or give more text",
        )
    place = len(everything) - count * joined
    blocks[Split.DISTILLATION] = everything[:place]
    found = {"long": lengthened(everything[place:], request.long_block, begun)}
    if name in learnt:
        found["long_learnt"] = lengthened(learnt[name][place:], request.long_block, begun)
        learnt[name] = learnt[name][:place]
    return {**found, **learnt}


def _refuse_without_answers(learnt: Mapping[str, Tensor], source: Source) -> None:
    for name, mask in learnt.items():
        if not mask[:, :-1].any():
            raise InputError(
                "of conversations the assistant's words are learnt, if --learn answers is given",
                f"the {_LEARNT[name]} set of {source.id} has none in {len(mask)} blocks",
                "Leave --learn out, or give more conversations",
            )


def _key(request: CorpusRequest, source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of everything that decides the blocks except the version of the text."""
    wanted = {split.value: blocks for split, blocks in request.wanted.items()}
    layout = request.layout or usual_layout(tokenizer)
    parts = [_VERSION, source.identity, request.block, wanted, tokenizer_fingerprint(tokenizer)]
    parts += [vars(layout), request.answers_alone, request.long_block, request.long_blocks]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what decides a tokenizer's output: rules, vocabulary, template, separators."""
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    parts = [type(tokenizer).__name__, rules, vocabulary, *special]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _refuse_too_little(builders: Mapping[Split, SplitBuilder], source: Source) -> None:
    if all(builder.held >= builder.block for builder in builders.values()):
        return
    block = next(iter(builders.values())).block
    tokens = ", ".join(f"{builder.held} tokens for {split}" for split, builder in builders.items())
    documents = sum(len(builder.documents) for builder in builders.values())
    raise InputError(
        f"calibration, distillation and validation need at least one block of {block} tokens each",
        f"{source.id} has {tokens}, in {documents} documents, of which about one in 20 each goes to "
        "calibration and validation",
        f"Give a text of at least {40 * block} tokens in 100 documents or more",
    )
