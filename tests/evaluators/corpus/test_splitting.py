from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.documents import documents_of_lines
from evaluators.corpus.splitting import bounded_lines, row_limit, split_long

texts = st.lists(st.sampled_from(["\n\n", "\n \n", "\n", ". ", "。", " ", "word", "x" * 9, "?” "])).map(
    "".join
)
limits = st.integers(min_value=1, max_value=30)


@given(texts | st.text(), limits)
def test_the_pieces_are_the_text(text: str, limit: int) -> None:
    pieces = list(split_long(text, limit))
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= limit for piece in pieces)
    assert all(len(piece) > limit // 2 for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One word. Two\nlines.\n \nA paragraph", "One word. Two\nlines.\n \n"),
        ("One word. Two lines.\nAnd a third one", "One word. Two lines.\n"),
        ("One word and two. And a third sentence", "One word and two. "),
        ("One asks: “Is it two?” And a third one", "One asks: “Is it two?” "),
        ("One, and without a sentence's end", "One, and without a "),
        ("一二三四五六七八九十一二三四。一二三四五六七八九十", "一二三四五六七八九十一二三四。"),
        ("Onewordthatislongerthanallthatfits", "Onewordthatislongerthan"),
    ],
)
def test_the_best_end_is_taken(text: str, first: str) -> None:
    assert next(split_long(text, 23)) == first


def test_an_end_in_the_first_half_is_not_taken() -> None:
    assert next(split_long("A.\n\nfive words, then a few more", 20)) == "A.\n\nfive words, "


def test_what_fits_is_left_alone() -> None:
    assert list(split_long("one. two\n\nthree", 15)) == ["one. two\n\nthree"]
    assert list(split_long("", 15)) == []


@pytest.mark.parametrize(
    ("size", "limit"),
    [(None, 65_536), (0, 4096), (655_360, 4096), (16_000_000, 100_000), (10**12, 1 << 20)],
)
def test_the_limit_follows_the_size(size: int | None, limit: int) -> None:
    assert row_limit(size) == limit


def test_of_twelve_books_each_split_gets_some() -> None:
    books = ["".join(f"Sentence {number} of book {book}. " for number in range(20_000)) for book in range(12)]
    limit = row_limit(sum(map(len, books)))
    assert sum(len(list(split_long(book, limit))) for book in books) >= 160


@given(texts, limits)
def test_lines_are_those_of_the_stream_unless_they_are_long(text: str, limit: int) -> None:
    lines = list(bounded_lines(io.StringIO(text), limit))
    assert "".join(lines) == text
    assert all(len(line) <= limit for line in lines)
    if all(len(line) <= limit for line in io.StringIO(text)):
        assert lines == list(io.StringIO(text))


def test_a_file_of_one_line_gives_documents_that_end_with_sentences() -> None:
    text = "A sentence of a story. " * 10_000
    documents = list(documents_of_lines(bounded_lines(io.StringIO(text), 4096), 1024))
    assert "".join(documents) == text
    assert len(documents) > 50
    assert all(left.endswith(". ") for left, _ in pairwise(documents))
