"""The tokens of a tokenizer: which must stay so that every text can be written, and which build on others.

A tokenizer is read as the ``tokenizers`` library describes it (the contents of ``tokenizer.json``). A BPE
tokenizer makes a token by merging two others, which therefore stay if it does. Unigram and WordPiece look
whole tokens up, so any of them may go but those that single characters are written with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from space.input_error import InputError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: Models of the ``tokenizers`` library whose tokens may go.
_KINDS = ("BPE", "Unigram", "WordPiece")
Described = Mapping[str, Any]
"""The contents of ``tokenizer.json``."""


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a tokenizer by number."""

    names: Mapping[int, str]
    """Of all tokens, those that were added included."""
    always: frozenset[int]
    """Tokens that always stay: added ones, the one for what is unknown, and those of single bytes or, in a
    tokenizer that does not fall back on bytes, of single characters."""
    parts: Mapping[int, tuple[int, int]]
    """The two tokens that a token is merged from, in a BPE tokenizer."""

    @classmethod
    def of(cls, described: Described) -> TokenTable:
        """Read the tokens of a tokenizer.

        Raises:
            InputError: it is of a kind of which no token can go.
        """
        model = described["model"]
        if (kind := model.get("type")) not in _KINDS:
            raise InputError(
                f"Tokens can go from tokenizers of the kinds {', '.join(_KINDS)}",
                f"this one is of the kind {kind}",
                "Keep the whole vocabulary",
            )
        numbers = dict(_own_tokens(model))
        added = {token["id"]: token["content"] for token in described.get("added_tokens") or ()}
        names = {number: name for name, number in numbers.items()} | added
        parts = dict(_parts(model, numbers))
        single = {number for name, number in numbers.items() if _is_single(described, name, number, parts)}
        unknown = _unknown(model, numbers)
        return cls(names, frozenset({*added, *single, *unknown}), parts)

    def order(self, scores: Sequence[float], stay: Sequence[int] = ()) -> list[int]:
        """Return all tokens, the most important first: tokens that stay, then by score, parts before wholes.

        So the first tokens, however many, make up every token among them. Tokens of which the model has no
        row are left out, as no text may have them.

        Args:
            scores: (V,) importance of each token, of which the model has V rows.
            stay: more tokens that have to stay, such as those that a config names.
        """
        found: dict[int, None] = {}
        known = [number for number in self.names if number < len(scores)]

        def add(number: int) -> None:
            if number not in found:
                for part in self.parts.get(number, ()):
                    add(part)
                found[number] = None

        kept = sorted({*self.always, *stay} & {*known})
        for number in [*kept, *sorted(known, key=lambda number: (-scores[number], number))]:
            add(number)
        return list(found)


def _own_tokens(model: Described) -> Iterator[tuple[str, int]]:
    """Yield the tokens of a model; the vocabulary of Unigram is a list of pieces with scores."""
    if model["type"] == "Unigram":
        yield from ((piece, number) for number, (piece, _) in enumerate(model["vocab"]))
    else:
        yield from model["vocab"].items()


def _parts(model: Described, numbers: Mapping[str, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield what each token is merged from, by the merge that is applied first."""
    seen = set()
    for left, right in map(as_pair, model.get("merges") or ()):
        whole = numbers.get(merged(model, left, right))
        if whole is not None and whole not in seen and left in numbers and right in numbers:
            seen.add(whole)
            yield whole, (numbers[left], numbers[right])


def as_pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Return the two sides of a merge, which older files have as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def merged(model: Described, left: str, right: str) -> str:
    """Return the token that a merge makes."""
    prefix = model.get("continuing_subword_prefix") or ""
    return left + right.removeprefix(prefix)


def _is_single(described: Described, name: str, number: int, parts: Mapping[int, tuple[int, int]]) -> bool:
    """Whether texts cannot be written without a token: one of a byte or, without these, of a character."""
    model = described["model"]
    if model.get("byte_fallback"):
        return bool(_BYTE.fullmatch(name))
    if works_on_bytes(described):
        return name in _ALPHABET
    if model["type"] == "BPE":
        return number not in parts
    return len(name.removeprefix(model.get("continuing_subword_prefix") or "")) == 1


def _unknown(model: Described, numbers: Mapping[str, int]) -> Iterator[int]:
    """Yield the token that stands for what is unknown, if there is one."""
    if model.get("unk_token") in numbers:
        yield numbers[model["unk_token"]]
    if model.get("unk_id") is not None:
        yield model["unk_id"]


def works_on_bytes(described: Described) -> bool:
    """Whether texts become bytes, each written as one of 256 characters, before they become tokens."""
    return any(_names_bytes(described.get(part)) for part in ("normalizer", "pre_tokenizer"))


def _names_bytes(step: Any) -> bool:
    if isinstance(step, Mapping):
        return step.get("type") == "ByteLevel" or any(map(_names_bytes, step.values()))
    return isinstance(step, list) and any(map(_names_bytes, step))


_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
