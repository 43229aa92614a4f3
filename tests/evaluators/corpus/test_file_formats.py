"""Each format of docs/data.md, with the documents that it gives."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Json, Value

from evaluators.corpus.local_files import find_files, sha256_of_files
from evaluators.corpus.local_text import local_documents
from space.input_error import InputError

TEXTS = ["Naïve café.\n\nThe end.\n", "“Another” story, 二."]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'id,text\n0,"Naïve café.\n\nThe end.\n"\n1,"“Another” story, 二."\n'
WRITTEN = {
    ".txt": TEXTS[0],
    ".jsonl": LINES,
    ".json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    ".csv": CSV,
}


def texts(path: Path | str) -> list[str]:
    return [document.text for document in local_documents(find_files(str(path)))]


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as refusal:
        texts(path)
    return str(refusal.value)


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    compressed: bytes = sink.getvalue().to_pybytes()
    return compressed


def as_is(content: bytes) -> bytes:
    return content


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize(("compression", "compress"), [("", as_is), (".gz", gzip.compress), (".zst", zstd)])
def test_every_kind_is_read_compressed_or_not(
    tmp_path: Path, suffix: str, compression: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.b{suffix}{compression}"
    path.write_bytes(compress(WRITTEN[suffix].encode()))
    assert texts(path) == (TEXTS[:1] if suffix == ".txt" else TEXTS)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a{suffix}"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + WRITTEN[suffix]).encode(encoding))
    assert texts(path) == (TEXTS[:1] if suffix == ".txt" else TEXTS)


def test_line_ends_of_windows_become_plain(tmp_path: Path) -> None:
    for suffix, content in WRITTEN.items():
        (tmp_path / f"a{suffix}").write_text(content, newline="\r\n", encoding="utf-8")
        assert texts(tmp_path / f"a{suffix}")[0] == TEXTS[0]


def test_parts_compressed_one_after_another_are_one_file(tmp_path: Path) -> None:
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstd)):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(b"".join(compress(line.encode()) for line in LINES.splitlines(keepends=True)))
        assert texts(path) == TEXTS


def test_saved_datasets_are_read_by_their_folder(tmp_path: Path) -> None:
    saved = Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    DatasetDict(test=saved.select([0]), train=saved).save_to_disk(tmp_path / "splits")
    DatasetDict(test=saved).save_to_disk(tmp_path / "test alone")
    assert texts(tmp_path / "one") == texts(tmp_path / "splits") == texts(tmp_path / "test alone") == TEXTS
    assert texts(tmp_path / "splits" / "test") == TEXTS[:1]
    assert texts(tmp_path / "*") == texts(tmp_path) == [*TEXTS, *TEXTS, *TEXTS]


def test_of_several_splits_one_has_to_be_for_training(tmp_path: Path) -> None:
    saved = Dataset.from_list(ROWS)
    DatasetDict(a=saved, b=saved).save_to_disk(tmp_path / "saved")
    assert f"saved has a, b. Name the folder of one, as {tmp_path}/saved/a" in refused(tmp_path / "saved")


def test_a_saved_format_hides_no_column(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).with_format("numpy", columns=["id"]).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == TEXTS


def test_the_hash_of_a_saved_dataset_is_that_of_its_tables(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[::-1])):
        Dataset.from_list(rows).save_to_disk(tmp_path / name, num_shards=2)
    (tmp_path / "b" / "state.json").write_text(
        (tmp_path / "b" / "state.json").read_text().replace('"_fingerprint": "', '"_fingerprint": "0')
    )
    a, b, c = (sha256_of_files(find_files(str(tmp_path / name))) for name in "abc")
    assert a == b != c


def test_the_kind_of_a_compressed_file_is_part_of_its_hash(tmp_path: Path) -> None:
    names = ("a.txt.gz", "b.txt.gz", "a.jsonl.gz")
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(LINES.encode(), mtime=0))
    a, b, c = (sha256_of_files([tmp_path / name]) for name in names)
    assert a == b != c


@pytest.mark.parametrize("saved", [False, True])
def test_rows_that_are_lines_are_read_as_one_text(
    tmp_path: Path, saved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["", " = A heading = \n", "", *(f" Paragraph {number} . \n" for number in range(8)), ""] * 200
    path = tmp_path / ("wiki" if saved else "wiki.parquet")
    rows = Dataset.from_dict({"text": lines})
    if saved:
        rows.save_to_disk(path)
    else:
        rows.to_parquet(path)
    with caplog.at_level(logging.INFO):
        documents = texts(path)
    assert "".join(documents) == "".join(line or "\n" for line in lines)
    assert 10 < len(documents) < 400
    assert [record.message for record in caplog.records if record.name.startswith("evaluators")] == [
        f"{path}: its rows are lines, many of them blank; they are read as one text"
    ]


def test_columns_of_a_table_reach_their_reader_whole(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "tools": Json(), "picture": Image()})
    rows = [{"text": text, "tools": {"a": 1}, "picture": None} for text in TEXTS]
    table = Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "a.parquet") == texts(tmp_path / "saved") == TEXTS
    table.select_columns("picture").to_parquet(tmp_path / "b.parquet")
    assert "the columns of" in refused(tmp_path / "b.parquet")
    assert "are picture" in refused(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json", "a.csv"])
def test_long_rows_are_cut_at_sentences(tmp_path: Path, name: str) -> None:
    book = "A sentence of a book. " * 2000
    rows = Dataset.from_list([{"text": book}, {"text": "A short one."}])
    match Path(name).suffix:
        case ".parquet":
            rows.to_parquet(tmp_path / name)
        case ".csv":
            rows.to_csv(tmp_path / name, index=False)
        case _:
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    documents = texts(tmp_path / name)
    assert "".join(documents) == book + "A short one."
    assert len(documents) == 12
    assert all(document.endswith(". ") for document in documents[:-1])


def test_a_file_of_one_line_is_cut(tmp_path: Path) -> None:
    story = "A sentence of a story. " * 20_000
    (tmp_path / "a.txt").write_text(story)
    documents = texts(tmp_path / "a.txt")
    assert "".join(documents) == story
    assert len(documents) > 50


@pytest.mark.parametrize(
    "name", ["a[1].txt", "[a].jsonl", "{a}*.json", "a?[b.csv.gz", "[a].parquet", "[saved]"]
)
def test_names_with_brackets_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder [1-9]*"
    folder.mkdir()
    path = folder / name
    if name == "[saved]":
        Dataset.from_list(ROWS).save_to_disk(path)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(CSV.encode()))
    else:
        path.write_text(WRITTEN[path.suffix], encoding="utf-8")
    expected = TEXTS[:1] if path.suffix == ".txt" else TEXTS
    assert texts(path) == texts(folder) == texts(folder / "*") == texts(tmp_path) == expected


def test_stray_files_are_passed_over_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b.txt").write_text("hidden")
    for name in (".DS_Store", ".gitattributes", "LICENSE.txt", "README.md", "dataset_infos.json", "z.pdf"):
        (tmp_path / name).write_text("about")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "zz.txt").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path) == texts(tmp_path) == ["a"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: passed over .DS_Store, .cache, .gitattributes, LICENSE.txt, README.md and 3 more"
    ]
    assert texts(tmp_path / "LICENSE.txt") == ["about"]


def test_a_folder_without_texts_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    assert f"there is none in {tmp_path}. Check" in refused(tmp_path)
    (tmp_path / "README.md").write_text("a")
    (tmp_path / "b.pdf").write_text("a")
    assert f"there is none in {tmp_path} but README.md, b.pdf. Check" in refused(tmp_path)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_broken_compressions_are_refused(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(LINES.encode() * 100)
    for content in (whole[:-9], LINES.encode()):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(content)
        message = refused(path)
        assert message.startswith(f"a {suffix} file has to be whole; {path} is not: ")
        assert message.endswith(". Copy or compress it again.")


def test_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a story".encode("utf-16-le"))
    assert "a.txt is neither: it begins with the bytes b'a\\x00 \\x00'" in refused(path)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (
            "a.json",
            '[{"text": "a"',
            "a .json file has to hold what its suffix says; {} does not: Expecting ','",
        ),
        (
            "a.csv",
            "id,text\n1\n",
            "a .csv file has to hold what its suffix says; {} does not: the row that ends",
        ),
        ("a.csv", "A story without a header.\n", "the first row of a .csv file has to name its columns"),
    ],
)
def test_what_is_wrong_is_said_with_the_name(tmp_path: Path, name: str, content: str, found: str) -> None:
    (tmp_path / name).write_text(content)
    assert found.format(tmp_path / name) in refused(tmp_path / name)


def test_a_saved_dataset_without_its_tables_is_refused(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert "saved" in refused(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert "state.json of a saved dataset has to name its tables" in refused(tmp_path / "saved")
