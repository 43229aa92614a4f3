from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evaluators.corpus.blocks import Split, pack, split_of
from evaluators.corpus.documents import Document
from evaluators.corpus.layout import Layout
from evaluators.corpus.splits import DocumentTokenizer, build_splits

texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=150)


def wanted(blocks: int) -> dict[Split, int]:
    return dict.fromkeys(Split, blocks)


@given(texts, st.integers(1, 30), st.integers(1, 4))
def test_each_split_packs_its_own_documents_in_order(
    byte_tokenizer: PreTrainedTokenizerFast, texts: list[str], block: int, blocks: int
) -> None:
    documents = [Document.unnamed(text) for text in texts]
    filled = build_splits(documents, DocumentTokenizer(byte_tokenizer), block, wanted(blocks))
    for split in Split:
        own = [document.text for document in documents if split_of(document.name) is split]
        assert torch.equal(filled[split].cut(), pack(own, byte_tokenizer, block, blocks))


@given(texts, st.integers(1, 30), st.integers(1, 4))
def test_bytes_are_those_of_the_text_within_the_blocks(
    byte_tokenizer: PreTrainedTokenizerFast, texts: list[str], block: int, blocks: int
) -> None:
    filling = build_splits(
        map(Document.unnamed, texts), DocumentTokenizer(byte_tokenizer), block, wanted(blocks)
    )[Split.DISTILLATION]
    tokens = [token for token in filling.cut().flatten().tolist() if token != byte_tokenizer.bos_token_id]
    bytes_of_characters_cut_short = len(tokens) - len(whole_characters(tokens, byte_tokenizer).encode())
    assert filling.cut_bytes(byte_tokenizer) == len(tokens) - bytes_of_characters_cut_short
    assert bytes_of_characters_cut_short < 4


def whole_characters(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    for missing in range(4):
        text = tokenizer.decode(tokens[: len(tokens) - missing])
        assert isinstance(text, str)
        if text.encode() and not text.endswith("\ufffd"):
            return text
    return ""


def test_reading_stops_when_every_split_is_full(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        for read in count(1):
            yield Document.unnamed(f"document {read}")

    filled = build_splits(endless(), DocumentTokenizer(byte_tokenizer), 16, wanted(3))
    assert {len(filling.cut()) for filling in filled.values()} == {3}
    assert read < 1000


def test_bytes_agree_with_a_tokenizer_that_adds_a_space_before_words(real: Path) -> None:
    tokenizer = stories_tokenizer(real)
    text = "Once upon a time there was a cat.\nIt ran away, and came back — hungry!\n"
    documents = [Document(f"document {number}", f"{number} {text}") for number in range(400)]
    tokenize = DocumentTokenizer(tokenizer, Layout(before=tokenizer.bos_token_id))
    filling = build_splits(documents, tokenize, 32, wanted(20))[Split.VALIDATION]
    rows = filling.cut().flatten().tolist()
    pieces: list[list[int]] = []
    for token in rows:
        if token == tokenizer.bos_token_id:
            pieces.append([])
        else:
            pieces[-1].append(token)
    decoded = sum(len(str(tokenizer.decode(piece)).encode()) for piece in pieces)
    assert filling.cut_bytes(tokenizer) == pytest.approx(decoded, abs=3)


def stories_tokenizer(real: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(real / "stories260K")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
