from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.documents import document_length, documents_of_lines

lines = st.lists(
    st.tuples(st.sampled_from(["", "  ", "word", "w" * 700, "l" * 3000, "x" * 20_000]), st.integers(1, 5)),
    max_size=40,
).map(lambda runs: [f"{text}\n" for text, times in runs for _ in range(times)])


@given(lines)
def test_the_text_is_kept_as_it_is(lines: list[str]) -> None:
    text = "".join(lines)
    assert "".join(documents_of_lines(lines)) == (text if text.strip() else "")


@given(lines)
def test_documents_are_long_enough_to_hold_what_belongs_together(lines: list[str]) -> None:
    documents = list(documents_of_lines(lines))
    assert all(len(document) >= 4096 for document in documents[:-1])
    assert all(document.strip() for document in documents)


@given(lines)
def test_documents_end_after_a_blank_line_unless_they_are_very_long(lines: list[str]) -> None:
    for document in list(documents_of_lines(lines))[:-1]:
        last = document.splitlines()[-1]
        assert not last.strip() or len(document) >= 8192


def test_short_paragraphs_stay_together() -> None:
    paragraph = "A sentence of a story.\n"
    (document,) = documents_of_lines([paragraph, "\n"] * 50)
    assert document == (paragraph + "\n") * 50


def test_text_without_blank_lines_is_cut_at_the_ends_of_lines() -> None:
    documents = list(documents_of_lines(f"line {number}\n" for number in range(10_000)))
    assert len(documents) > 4
    assert all(document.startswith("line ") and document.endswith("\n") for document in documents)


@pytest.mark.parametrize(("size", "length"), [(0, 256), (80_000, 500), (794_375, 4096), (10**12, 4096)])
def test_small_texts_are_cut_into_shorter_documents(size: int, length: int) -> None:
    assert document_length(size) == length


def test_a_length_holds() -> None:
    documents = list(documents_of_lines(["a line\n", "\n"] * 1000, length=300))
    assert {len(document) for document in documents[:-1]} == {304}


def test_blank_lines_alone_are_no_document() -> None:
    assert list(documents_of_lines(["\n"] * 10_000 + ["a line\n"])) == ["\n" * 10_000 + "a line\n"]
    assert list(documents_of_lines(["\n"] * 10_000)) == []
