from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from evaluators.corpus.local_files import find_files, sha256_of_files
from evaluators.corpus.local_text import local_documents
from space.input_error import InputError

STORIES = [f"Story {number}: naïve café.\n\nThe end.\n" for number in range(5)]


def texts(path: Path) -> list[str]:
    return [document.text for document in local_documents(find_files(str(path)))]


def json_lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as refusal:
        list(local_documents(find_files(str(path))))
    return str(refusal.value)


def test_plain_text_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\n".join(STORIES * 400), encoding="utf-8")
    documents = texts(path)
    assert "".join(documents) == "\n".join(STORIES * 400)
    assert len(documents) > 10


def test_json_lines_give_a_document_a_row(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text(json_lines([{"id": n, "text": text} for n, text in enumerate(STORIES)]), encoding="utf-8")
    assert texts(path) == STORIES


def test_json_lines_may_differ_in_their_other_columns_and_lack_a_text(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    rows: list[Mapping[str, object]] = [
        {"text": None, "title": "a"},
        {"text": "b", "year": 3},
        {},
        {"text": " "},
    ]
    path.write_text("\n" + json_lines(rows), encoding="utf-8")
    assert texts(path) == ["b"]


def test_half_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a ? b"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet_gives_a_document_a_row(tmp_path: Path, kind: object) -> None:
    table = pyarrow.table({"text": pyarrow.array([*STORIES, None], kind), "n": range(6)})
    pyarrow.parquet.write_table(table, tmp_path / "stories.parquet")
    assert texts(tmp_path / "stories.parquet") == STORIES


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"content": "yes", "text": "no number"}, "no number"),
        ({"content": "yes", "title": "no"}, "yes"),
        ({"text": 1, "content": "yes"}, "yes"),
    ],
)
def test_which_column_is_the_text(tmp_path: Path, columns: Mapping[str, object], chosen: str) -> None:
    (tmp_path / "a.jsonl").write_text(json_lines([columns]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(columns)]), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "a.parquet") == [chosen]


def test_a_folder_is_read_in_order_and_other_files_in_it_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.jsonl").write_text(json_lines([{"text": "second"}]))
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.TXT").write_text("third")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "README.md").write_text("about the texts")
    assert texts(tmp_path) == ["first", "second", "third"]
    assert texts(tmp_path / "*.txt") == ["first"]


def test_the_content_decides_the_hash_and_the_place_does_not(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    hashes = {name: sha256_of_files([tmp_path / name]) for name in ("a.txt", "b.txt", "c.jsonl")}
    assert hashes["a.txt"] == hashes["b.txt"] != hashes["c.jsonl"]
    (tmp_path / "a.txt").write_text('{"text": "b"}')
    assert sha256_of_files([tmp_path / "a.txt"]) != hashes["b.txt"]


def test_what_may_be_on_the_hub_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for id in (
        "wikitext",
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceFW/fineweb-edu:sample-10BT",
        "a/b@main:c",
    ):
        assert find_files(id) == []
    Path("wikitext").mkdir()
    Path("wikitext/a.txt").write_text("a")
    assert find_files("wikitext") == [Path("wikitext/a.txt")]


def test_a_missing_file_brings_one_like_it_to_mind(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("a")
    message = refused(tmp_path / "storys.txt")
    assert f"{tmp_path}/storys.txt does not exist (did you mean {tmp_path}/stories.txt?)" in message
    assert message.startswith("--data takes .txt, .jsonl, .json and .csv files, each also as .gz or .zst")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert f"(did you mean {tmp_path}/texts?)" in refused(tmp_path / "text" / "a.txt")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.docx", "a .docx"), ("a", "without a suffix"), ("a.parquet.gz", "a .parquet.gz"), ("b.gz", "a .gz")],
)
def test_unknown_kinds_of_files_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("a")
    assert f"{name} is {kind}. Convert or rename it." in refused(tmp_path / name)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a")
    assert f"there is none in {tmp_path}" in refused(tmp_path)
    assert f"nothing matches {tmp_path}/*.txt" in refused(tmp_path / "*.txt")
    (tmp_path / "empty.txt").write_text("")
    assert "the text has to hold something" in refused(tmp_path / "empty.txt")
    assert f"{tmp_path}/empty.txt is empty" in refused(tmp_path / "empty.txt")


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    assert re.search(
        r"text has to be UTF-8, or UTF-16 .*; .*latin.txt is neither: .* \(b'\\xef'\). Convert it",
        refused(path),
    )


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": nothing}\n', "line 2: Expecting value"),
        ("a.jsonl", '[{"text": "a"}]\n', "line 1 is no JSON object"),
        ("a.parquet", "text", "smaller than the minimum file footer"),
    ],
)
def test_files_that_are_not_what_their_suffix_says_are_refused(
    tmp_path: Path, name: str, content: str, found: str
) -> None:
    (tmp_path / name).write_text(content)
    message = refused(tmp_path / name)
    assert (
        f"a {Path(name).suffix} file has to hold what its suffix says; {tmp_path / name} does not: "
        in message
    )
    assert found in message


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"title": "a", "body": "b", "n": 1}, "has the columns title, body, n"),
        ({"sentence": "the only string", "label": 1}, "has the columns sentence, label"),
        ({"text": 1}, "has the columns text"),
    ],
)
def test_without_a_column_of_text_the_columns_are_listed(
    tmp_path: Path, row: Mapping[str, object], found: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json_lines([row]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row)]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert f"{tmp_path / name} {found}. Rename the column that holds the text" in refused(tmp_path / name)


def test_a_row_with_something_else_for_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json_lines([{"text": "a"}, {"text": ["b"]}]))
    assert "string in the column text; row 2 has ['b']." in refused(tmp_path / "a.jsonl")


def test_a_table_without_rows_holds_no_documents(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet"
    )
    assert texts(tmp_path / "a.parquet") == []
