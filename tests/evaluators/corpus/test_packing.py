from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evaluators.corpus.blocks import pack

TEXTS = ["abc", "", "defgh", "ü"]


def begun(text: str) -> list[int]:
    """The tokens of a text by hand: bytes in the order of the tokenizer's alphabet, after BOS."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = dict(zip(printable, map(chr, printable), strict=True))
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    order = sorted(letters, key=lambda byte: letters[byte])
    return [0, *(order.index(byte) + 1 for byte in text.encode())]


def test_documents_lie_end_to_end_with_their_boundaries(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    flat = [token for text in TEXTS for token in begun(text)]
    blocks = pack(TEXTS, byte_tokenizer, 4)
    assert blocks.dtype == torch.int32
    assert blocks.flatten().tolist() == flat[:12]
    assert blocks.shape == (3, 4)


def test_without_bos_a_document_is_ended_by_eos(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ending = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token=byte_tokenizer.eos_token
    )
    assert pack(["abc", "de"], ending, 7).flatten().tolist() == [*begun("abc")[1:], 0, *begun("de")[1:], 0]


@given(st.lists(st.text(max_size=20), max_size=200), st.integers(1, 50), st.integers(1, 5))
def test_at_most_so_many_blocks(
    byte_tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int, most: int
) -> None:
    whole = pack(texts, byte_tokenizer, length)
    assert len(whole) == sum(len(text.encode()) + 1 for text in texts) // length
    assert torch.equal(pack(texts, byte_tokenizer, length, most), whole[:most])


def test_no_text_is_no_blocks(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert pack([], byte_tokenizer, 8).shape == (0, 8)


def test_documents_longer_than_the_context_give_no_warning(
    byte_tokenizer: PreTrainedTokenizerFast, said_by_libraries: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.deprecation_warnings.clear()  # it warns once in its life, and others have used it before
    text = "long " * 100
    assert tokenizer.model_max_length == 64
    pack([text], tokenizer, 16)
    assert said_by_libraries.text == ""
    tokenizer(text)
    assert "longer than the specified maximum" in said_by_libraries.text
