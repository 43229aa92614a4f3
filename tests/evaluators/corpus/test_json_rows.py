from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.json_rows import JsonValues, json_rows

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=4)


def rows(text: str) -> list[dict[str, object]]:
    return list(json_rows(io.StringIO(text)))


@given(objects, st.sampled_from([None, 1]), st.booleans(), st.integers(min_value=1, max_value=20))
def test_pieces_of_any_length_give_the_same_values(
    written: list[Mapping[str, object]], indent: int | None, ascii: bool, chunk: int
) -> None:
    text = "\n".join(json.dumps(value, indent=indent, ensure_ascii=ascii) for value in written)
    read = JsonValues(io.StringIO(f" {text} "), chunk)
    assert [read.value() for _ in written] == written
    assert read.next_character() == ""


@given(objects, st.sampled_from([None, 2]))
def test_an_array_gives_its_objects(written: list[Mapping[str, object]], indent: int | None) -> None:
    assert rows(json.dumps(written, indent=indent)) == written


def test_lines_of_objects_are_taken_as_well() -> None:
    assert rows('{"text": "a"}\n\n{"text": "b"}\n') == [{"text": "a"}, {"text": "b"}]
    assert rows('{\n "text": "a"\n}\n{\n "text": "b"\n}') == [{"text": "a"}, {"text": "b"}]
    assert rows(" \n") == rows("[]") == []


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"text": "a", "tags": ["b"]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "b"}]},
    ],
)
def test_one_object_is_one_row(row: Mapping[str, object]) -> None:
    assert rows(json.dumps(row, indent=1)) == [row]


def test_one_list_alone_in_an_object_gives_its_rows() -> None:
    assert rows('{"data": [{"text": "a"}, {"text": "b"}]}') == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"version": "1", "data": [{"text": "a"}]}', "one object with version, data; keep .* `jq .data`"),
        ('[{"text": "a"}, "b"]', "value 2 of the array is no JSON object"),
        ('{"data": [{"text": "a"}, 1]}', "value 2 of data is no JSON object"),
        ('{"text": "a"}\n7', "value 2 is no JSON object"),
        ('"a"', "value 1 is no JSON object"),
        ('[{"text": "a"} {"text": "b"}]', "Expecting ',' at character 16"),
        ('[{"text": "a"}] 1', "something follows the array"),
        ('[{"text": "a"', "Expecting ',' delimiter at character 14"),
        ('[{"text": "a"},', "Expecting value at character 16"),
        ('[{"text": "a', "Unterminated string starting at character 12"),
        ('[{"text": nothing}' + " " * 40 + "]", "Expecting value at character 11"),
    ],
)
def test_what_is_no_list_of_objects_is_refused(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        rows(text)
