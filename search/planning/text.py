"""What a plan says of the texts: a look at the first documents of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from evaluators.corpus.blocks import batches
from evaluators.corpus.documents import Document
from evaluators.corpus.mixture import DataSource, parse_data
from evaluators.corpus.sources import Source, find_source
from evaluators.corpus.splits import DocumentTokenizer
from evaluators.huggingface.hub import HubUnavailableError
from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher import find_tokenizer
from search.settings.config import RunConfig
from search.settings.teachers import OPEN_CORPUS, OPEN_MIXTURE

#: So many characters, and so many documents, are looked at.
_CHARACTERS, _DOCUMENTS = 1_000_000, 2000
#: The default texts, which are not looked at.
_KNOWN = {one.data for one in parse_data(OPEN_MIXTURE)} | {OPEN_CORPUS}


@dataclass(frozen=True)
class Head:
    """The first documents of a text."""

    documents: int
    conversations: int
    bytes: int
    tokens: int | None
    """None without a tokenizer."""
    whole: bool
    """Whether there are no others."""
    example: str | None
    """The first conversation, as the teacher reads it."""


def text_rows(config: RunConfig, verbose: bool = False) -> list[tuple[str, str]]:
    """Return the rows of the plan on the texts.

    Args:
        config: the run.
        verbose: whether to show a conversation as the teacher reads it.

    Raises:
        InputError: a text cannot be found or used.
    """
    sources = parse_data(config.data)
    tokenizer = find_tokenizer(config.teacher, config.trust_remote_code)
    lines, examples = [], []
    for source in sources:
        words, example = _described(source, len(sources) > 1, tokenizer)
        lines.append(words)
        examples += [example] if example else []
    shown = [("conversation", examples[0].rstrip())] if verbose and examples else []
    return [("data", "\n".join(lines)), *shown]


def _described(
    named: DataSource, mixed: bool, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, str | None]:
    """Return a text in words, and a conversation of it."""
    name = f"{named.share:.0%} {named.data}" if mixed else named.data
    if named.data in _KNOWN:
        return f"{name}, read from the hub", None
    source = find_source(named.data)
    try:
        head = _look(source, tokenizer)
    except HubUnavailableError as error:
        return f"{name}, not looked at: {error.values}", None
    return f"{name}, {_amount(head, source.size)}", head.example


def _look(source: Source, tokenizer: PreTrainedTokenizerBase | None) -> Head:
    with quiet_libraries():
        found = list(_first(source.head()))
    documents = found[:_DOCUMENTS]
    tokens, example = None, None
    if tokenizer is not None:
        tokenize = DocumentTokenizer(tokenizer)
        tokens = sum(len(one.tokens) for some in batches(documents) for one in tokenize(some))
        tokenize.writer.close(source.id)
        example = next(tokenize.texts(one for one in documents if one.conversation), None)
    return Head(
        len(documents),
        sum(one.conversation is not None for one in documents),
        sum(len((one.text or str(one.conversation)).encode()) for one in documents),
        tokens,
        len(found) == len(documents) and sum(one.characters for one in documents) < _CHARACTERS,
        example,
    )


def _first(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield documents until there are enough, and one more than are looked at if there are more."""
    characters = 0
    for document in islice(documents, _DOCUMENTS + 1):
        yield document
        characters += document.characters
        if characters >= _CHARACTERS:
            return


def _amount(head: Head, size: int | None) -> str:
    kind = "conversations" if head.conversations else "documents"
    if head.whole or size is None:
        more = "" if head.whole else "more than "
        tokens = "" if head.tokens is None else f"{head.tokens:,} tokens in "
        return f"{more}{tokens}{head.documents:,} {kind}"
    times = max(1.0, size / max(1, head.bytes))
    tokens = "" if head.tokens is None else f"{_rounded(times * head.tokens)} tokens in "
    return f"about {tokens}{_rounded(times * head.documents)} {kind}, as its beginning has them"


def _rounded(number: float) -> str:
    """Return a number to two digits."""
    return f"{int(float(f'{number:.1e}')):,}"
