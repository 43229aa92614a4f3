"""Mixtures of texts: the blocks of each by their shares, in turns, from its own splits.

A block has text of one source only, so shares of blocks are shares of tokens.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import Corpus, CorpusSource, Split, corpus_fingerprint
from evaluators.corpus.corpus import CorpusRequest, read_corpus
from space.input_error import InputError

logger = logging.getLogger(__name__)
#: By so much the held-out text may miss a share without a word.
_LOPSIDED = 0.05
_RULE = "of several texts each has its share of the tokens"


@dataclass(frozen=True)
class DataSource:
    """A text as the user names it, and its share of the tokens, of 1 in all."""

    data: str
    share: float


def parse_data(named: Sequence[str]) -> tuple[DataSource, ...]:
    """Read ``A=0.7 B=0.3``, or a single name; shares are made to sum to 1.

    Args:
        named: file, folder, glob or hub dataset each, with ``=SHARE`` where there are several.

    Raises:
        InputError: a share is missing or not positive, or a text is named twice.
    """
    if len(named) == 1 and not _has_share(named[0]):
        return (DataSource(named[0], 1.0),)
    without = [one for one in named if not _has_share(one)]
    if without:
        raise InputError(
            _RULE, f"{', '.join(without)} has none", f"Write {without[0]}=0.5, or any other number"
        )
    found = [(data, float(share)) for data, _, share in (one.rpartition("=") for one in named)]
    for data, share in found:
        if not (0 < share < math.inf):
            raise InputError(_RULE, f"{data} has {share:g}", "Give a number above 0, or leave the text out")
    names = [data for data, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(_RULE, f"{', '.join(sorted(twice))} is named twice", "Name each text once")
    total = sum(share for _, share in found)
    return tuple(DataSource(data, share / total) for data, share in found)


def _has_share(named: str) -> bool:
    """Whether a name ends in ``=NUMBER`` and is not that of a file."""
    data, equals, share = named.rpartition("=")
    try:
        float(share)
    except ValueError:
        return False
    return bool(data and equals) and not Path(named).exists()


def read_mixture(
    sources: Sequence[DataSource], request: CorpusRequest, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> Corpus:
    """Read as much of each text as its share needs; the distillation blocks are mixed.

    A text that is too short for its share is read again, until the longest has been read once.

    Args:
        sources: the texts.
        request: how much of all together; its ``data`` is not used.
        tokenizer: the teacher's.
        cache: the folder of cached corpora.

    Raises:
        InputError: a text cannot be found or read, or a split gets less than one block of it.
    """
    if len(sources) == 1:
        return read_corpus(replace(request, data=sources[0].data), tokenizer, cache).mixed()
    shares = [source.share for source in sources]
    wanted = {split: apportion(blocks, shares) for split, blocks in request.wanted.items()}
    long = apportion(request.long_blocks, shares) if request.long_blocks else [0] * len(sources)
    corpora = [
        read_corpus(
            replace(
                request,
                data=source.data,
                calibration_blocks=wanted[Split.CALIBRATION][place],
                distillation_blocks=wanted[Split.DISTILLATION][place],
                validation_blocks=wanted[Split.VALIDATION][place],
                long_blocks=long[place],
            ),
            tokenizer,
            cache,
        ).mixed()
        for place, source in enumerate(sources)
    ]
    return mixture_of(corpora, shares, request.distillation_blocks)


def apportion(blocks: int, shares: Sequence[float]) -> list[int]:
    """Return how many blocks each source has of so many, at least one.

    Args:
        blocks: in all.
        shares: of each source, in sum 1.
    """
    counts = [max(1, math.floor(share * blocks)) for share in shares]
    rests = [share * blocks - count for share, count in zip(shares, counts, strict=True)]
    for place in sorted(range(len(shares)), key=lambda place: -rests[place]):
        if sum(counts) < blocks:
            counts[place] += 1
    return counts


def turns(blocks: int, shares: Sequence[float]) -> list[int]:
    """Return the source of each of so many blocks, so that any first ones have the shares to within a block.

    Of the sources whose next block is due, the one comes that would be late first (R. Tijdeman, "The chairman
    assignment problem", Discrete Mathematics 32, 1980).

    Args:
        blocks: in all.
        shares: of each source, in sum 1.
    """
    counts, order = [0] * len(shares), []
    early = 1 / (2 * max(1, len(shares) - 1))
    for done in range(1, blocks + 1):
        lags = [share * done - count for share, count in zip(shares, counts, strict=True)]
        due = [place for place, lag in enumerate(lags) if lag >= early] or [lags.index(max(lags))]
        place = min(due, key=lambda source: (counts[source] + 1 - early) / shares[source])
        counts[place] += 1
        order.append(place)
    return order


def mixture_of(corpora: Sequence[Corpus], shares: Sequence[float], blocks: int) -> Corpus:
    """Mix corpora whose distillation blocks are shuffled.

    Args:
        corpora: of the same block length; their distillation sets may be shorter than their shares.
        shares: of each, in sum 1.
        blocks: the most distillation blocks.
    """
    available = [len(corpus.distillation) for corpus in corpora]
    longest = max(math.ceil(have / share) for have, share in zip(available, shares, strict=True))
    order = turns(min(blocks, longest), shares)
    counts = [order.count(place) for place in range(len(corpora))]
    _say_what_is_short(corpora, shares, counts)
    readers = [iter(_repeated(have, count)) for have, count in zip(available, counts, strict=True)]
    places = [(source, next(readers[source])) for source in order]
    splits = {
        Split.CALIBRATION: torch.cat([corpus.calibration for corpus in corpora]),
        Split.DISTILLATION: torch.stack([corpora[source].distillation[row] for source, row in places]),
        Split.VALIDATION: torch.cat([corpus.validation for corpus in corpora]),
    }
    others = _learnt(corpora, places) | _long(corpora, shares)
    return Corpus(
        id=" + ".join(f"{share:.0%} {corpus.id}" for corpus, share in zip(corpora, shares, strict=True)),
        calibration=splits[Split.CALIBRATION],
        distillation=splits[Split.DISTILLATION],
        validation=splits[Split.VALIDATION],
        validation_bytes=sum(corpus.validation_bytes for corpus in corpora),
        fingerprint=corpus_fingerprint(splits, others),
        layout=corpora[0].layout,
        sources=tuple(
            CorpusSource(corpus.id, share, count, len(corpus.validation), count / have)
            for corpus, share, count, have in zip(corpora, shares, counts, available, strict=True)
        ),
        **others,
    )


def _say_what_is_short(corpora: Sequence[Corpus], shares: Sequence[float], counts: Sequence[int]) -> None:
    """Say which texts are read more than once, and which have less held-out text than their shares."""
    held_out = sum(len(corpus.validation) for corpus in corpora)
    for corpus, share, count in zip(corpora, shares, counts, strict=True):
        have, found = len(corpus.distillation), len(corpus.validation) / held_out
        if count > have:
            logger.info(
                "%s is short for its share: its %d blocks are read %.1f times", corpus.id, have, count / have
            )
        if abs(found - share) > _LOPSIDED:
            logger.warning(
                "%s has a share of %.0f%%, and is %.0f%% of the held-out text",
                corpus.id,
                100 * share,
                100 * found,
            )


def _repeated(have: int, count: int) -> list[int]:
    """Return ``count`` numbers of ``have`` blocks, shuffled anew for each further time they are read."""
    rows = list(range(have))
    found = rows[:count]
    for again in range(1, math.ceil(count / have)):
        random.Random(again).shuffle(rows)
        found += rows[: count - len(found)]
    return found


def _learnt(corpora: Sequence[Corpus], places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the masks of what is learnt; none if of every corpus all tokens are."""
    if all(corpus.distillation_learnt is None and corpus.validation_learnt is None for corpus in corpora):
        return {}
    rows = [_mask(corpus.distillation_learnt, corpus.distillation) for corpus in corpora]
    validation = [_mask(corpus.validation_learnt, corpus.validation) for corpus in corpora]
    return {
        "distillation_learnt": torch.stack([rows[source][row] for source, row in places]),
        "validation_learnt": torch.cat(validation),
    }


def _long(corpora: Sequence[Corpus], shares: Sequence[float]) -> dict[str, Any]:
    """Return the longer blocks by the shares, and the masks of what is learnt of them."""
    long = [corpus.long for corpus in corpora if corpus.long is not None]
    if len(long) < len(corpora):
        return {}
    most = max(math.ceil(len(one) / share) for one, share in zip(long, shares, strict=True))
    order = turns(most, shares)
    readers = [iter(_repeated(len(one), order.count(place))) for place, one in enumerate(long)]
    places = [(source, next(readers[source])) for source in order]
    found = {"long": torch.stack([long[source][row] for source, row in places])}
    if any(corpus.long_learnt is not None for corpus in corpora):
        masks = [_mask(corpus.long_learnt, one) for corpus, one in zip(corpora, long, strict=True)]
        found["long_learnt"] = torch.stack([masks[source][row] for source, row in places])
    return found


def _mask(learnt: Tensor | None, tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool) if learnt is None else learnt


def losses_by_source(corpus: Corpus, loss: Callable[[Tensor, Tensor | None], float]) -> list[float]:
    """Return the loss on the validation blocks of each source of a mixture, in nats per token.

    Args:
        corpus: the mixture.
        loss: of some of the blocks and their mask of learnt tokens.
    """
    sizes = [source.validation_blocks for source in corpus.sources]
    masks = [None] * len(sizes) if corpus.validation_learnt is None else corpus.validation_learnt.split(sizes)
    return [loss(blocks, mask) for blocks, mask in zip(corpus.validation.split(sizes), masks, strict=True)]
