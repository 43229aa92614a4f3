from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.csv_rows import csv_rows
from space.input_error import InputError

fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv_rows(io.StringIO(text), "a.csv"))


@given(st.lists(st.tuples(fields, fields)))
def test_what_the_csv_module_writes_is_read(written: list[tuple[str, str]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("title", "text"), *written])
    assert rows(stream.getvalue()) == [{"title": title, "text": text} for title, text in written]


def test_quoted_fields_hold_lines_quotes_and_books() -> None:
    book = "word " * 50_000
    assert rows(f'text\n"a ""b""\n\nc, d"\n{book}\n') == [{"text": 'a "b"\n\nc, d'}, {"text": book}]


def test_the_index_of_pandas_is_left_out() -> None:
    assert rows(",text\n0,a\n1,b\n") == [{"text": "a"}, {"text": "b"}]


def test_nothing_gives_no_rows() -> None:
    assert rows("") == rows("text\n") == []


@pytest.mark.parametrize(
    "header",
    [
        "Once upon a time there was a cat.",
        "a,a",
        "a,,b",
        "1,text",
        "id;text",
        "id\ttext",
        "",
        "w" * 65,
        '"two\nlines"',
    ],
)
def test_a_first_row_that_names_no_columns_is_refused(header: str) -> None:
    with pytest.raises(
        InputError, match=r"first row of a .csv file has to name its columns.*that of a.csv is"
    ):
        rows(f"{header}\na,b\n")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("1,a\n2,b,c\n", "row that ends in line 3 has 3 fields and the header 2"),
        ('1,"a\n', "line 2: unexpected end of data"),
        ('1,"a"b\n', "line 2: ',' expected after '\"'"),
    ],
)
def test_broken_rows_are_refused(body: str, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        rows(f"id,text\n{body}")
