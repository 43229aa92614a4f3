"""How documents lie in blocks: what separates them, and what each block begins with.

Tokenizers of chat models name the end of a turn as their end of text, and the beginning of a turn as their
beginning; neither separates documents. What the tokenizer says leaves a few layouts, between which the
teacher's loss decides (``evaluators.metrics.layouts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

#: Names of tokens that end a text, in small letters alone; ``</s>`` is one by its slash.
_ENDS_OF_TEXT = frozenset({"endoftext", "endofsentence", "endofdocument", "eos", "eod"})


@dataclass(frozen=True)
class Layout:
    """Token ids around documents and at the beginning of blocks; None: there is none."""

    before: int | None = None
    """Before each document."""
    after: int | None = None
    """After each document."""
    beginning: int | None = None
    """At the beginning of each block."""

    def separated(self, tokens: list[int]) -> list[int]:
        """Return a document's tokens with those around it, none of which is doubled."""
        if self.before is not None and tokens[:1] != [self.before]:
            tokens = [self.before, *tokens]
        if self.after is not None and tokens[-1:] != [self.after]:
            tokens = [*tokens, self.after]
        return tokens

    def words(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the layout in words, for logs and reports."""
        name = tokenizer.convert_ids_to_tokens
        parts = [
            f"{name(token)} {where}"
            for token, where in (
                (self.before, "before each document"),
                (self.after, "after each document"),
                (self.beginning, "at the beginning of each block"),
            )
            if token is not None
        ]
        return ", ".join(parts) or "documents without a separator"


def possible_layouts(tokenizer: PreTrainedTokenizerBase) -> list[Layout]:
    """Return the layouts that a tokenizer leaves open, its own first.

    Args:
        tokenizer: the teacher's.
    """
    begin, end = beginning_of_text(tokenizer), end_of_text(tokenizer)
    if begin is None or begin == end:
        separators = [Layout(before=begin, after=None if begin == end else end)]
    elif end is None:
        separators = [Layout(before=begin)]
    else:
        separators = [Layout(before=begin), Layout(after=end), Layout(before=begin, after=end)]
    if begin is None:
        return separators
    begun = [Layout(one.before, one.after, begin) for one in separators]
    pairs = (
        zip(begun, separators, strict=True)
        if _adds(tokenizer, begin)
        else zip(separators, begun, strict=True)
    )
    return [layout for pair in pairs for layout in pair]


def usual_layout(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Return the layout that is taken where the teacher cannot be asked."""
    return possible_layouts(tokenizer)[0]


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that begins a text; None if there is none, or if it begins turns."""
    token, id = tokenizer.bos_token, tokenizer.bos_token_id
    if not isinstance(token, str) or not isinstance(id, int) or _turns_with(tokenizer, token):
        return None
    return id


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends a text.

    That is the tokenizer's own, unless its chat template writes it after every turn: then the special token
    whose name says so, and the tokenizer's own only if there is none.
    """
    token, id = tokenizer.eos_token, tokenizer.eos_token_id
    own = id if isinstance(id, int) else None
    if isinstance(token, str) and not _turns_with(tokenizer, token):
        return own
    return next(_named_ends(tokenizer), own)


def _named_ends(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    special = sorted(tokenizer.added_tokens_decoder.items())
    yield from (id for id, token in special if token.special and _ends_text(str(token)))


def _ends_text(name: str) -> bool:
    return name == "</s>" or re.sub(r"[^a-z]", "", name.lower()) in _ENDS_OF_TEXT


def _turns_with(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether the chat template writes a token for every turn, instead of once for a conversation."""
    if tokenizer.chat_template is None:
        return False
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # anything that a template's code raises
        return False
    return str(text).count(token) > 1


def _adds(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether the tokenizer itself puts a token before a text."""
    return list(tokenizer("a")["input_ids"])[:1] == [token]
