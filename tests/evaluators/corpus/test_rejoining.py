from __future__ import annotations

from collections.abc import Sequence

import pytest
from datasets import Features, Value
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.rejoining import lines_of_rows, recognise_lines

TEXT = Features({"text": Value("string")})
#: As of WikiText: headings, paragraphs and empty rows.
WIKI = ["", " = A heading = \n", "", " A paragraph of it . \n", " Another one . \n", ""] * 5
#: As ``datasets`` reads a .txt file: without line ends.
STRIPPED = ["A line of a paragraph,", "and its last one.", "", "Another paragraph.", ""] * 5


def recognised(texts: Sequence[str | None], features: Features = TEXT) -> bool:
    rows = [{"text": text} for text in texts]
    are_lines, given_back = recognise_lines(iter(rows), features)
    assert list(given_back) == rows
    return are_lines


@pytest.mark.parametrize("texts", [WIKI, STRIPPED, WIKI * 50, [*WIKI * 40, "a\nb"]])
def test_lines_of_a_text_are_recognised(texts: Sequence[str]) -> None:
    assert recognised(texts)
    assert recognised(texts, Features({"text": Value("large_string")}))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        WIKI[:15],  # too few to tell
        ["A story.\n\nIts end.\n", *WIKI],
        ["A document of one line."] * 50,
        ["A document of one line.\n"] * 50,
        [*["A document of one line."] * 46, *[""] * 4],
        [*["A document of one line.", "Another.\n"] * 20, *[""] * 20],
        ["A document of one line.", None] * 20,
        [""] * 50,
    ],
)
def test_documents_are_left_alone(texts: Sequence[str | None]) -> None:
    assert not recognised(texts)


@pytest.mark.parametrize(
    "features",
    [
        Features({"text": Value("string"), "id": Value("int64")}),
        Features({"story": Value("string")}),
        Features({"text": Value("int64")}),
    ],
)
def test_other_columns_are_no_lines(features: Features) -> None:
    rows = [dict.fromkeys(features, "")] * 20
    assert not recognise_lines(rows, features)[0]


@given(st.lists(st.sampled_from(["", "a", "b c", " "])))
def test_the_lines_are_those_of_the_text(lines: list[str]) -> None:
    ended = [f"{line}\n" for line in lines]
    for rows in (lines, ended, [line if line.strip() else "" for line in ended]):
        joined = "".join(lines_of_rows({"text": row} for row in rows))
        assert [line.strip() for line in joined.splitlines()] == [line.strip() for line in lines]
