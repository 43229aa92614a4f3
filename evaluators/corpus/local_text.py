"""Text from local files: .txt, .jsonl and .parquet, read through ``datasets``.

The loaders of the three kinds are called directly: ``load_dataset("json", ...)`` would send telemetry to
a server on the internet.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import IterableDataset

from evaluators.corpus.conversations import Conversation
from evaluators.corpus.documents import Document, contents_of_rows, document_length, documents_of_lines
from evaluators.huggingface.hub import may_be_hub_id, not_found
from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

_RULE = "--data takes .txt, .jsonl and .parquet files, a folder or glob of such, or a hub dataset id"


def find_files(data: str) -> list[Path]:
    """Return the files that ``data`` names, sorted; an empty list if it looks like a hub id.

    Raises:
        InputError: there is no such file, its suffix is unknown, or all files are empty.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _has_known_suffix(file))
        if not files:
            raise InputError(_RULE, f"there is none in {data}", "Put the text into one, or convert it")
    elif path.exists():
        files = [path]
    elif glob.has_magic(data):
        files = sorted(
            file for match in glob.glob(str(path), recursive=True) if (file := Path(match)).is_file()
        )
        if not files:
            raise InputError(_RULE, f"nothing matches {data}", "Check the pattern")
    elif may_be_hub_id(data.partition(":")[0].partition("@")[0]) and not _has_known_suffix(path):
        return []
    else:
        raise InputError(_RULE, not_found(data), "Check the path")
    _refuse_unreadable(files, data)
    return files


def _has_known_suffix(file: Path) -> bool:
    return file.suffix.lower() in _READERS


def _refuse_unreadable(files: Sequence[Path], data: str) -> None:
    for file in files:
        if not _has_known_suffix(file):
            raise InputError(
                _RULE,
                f"{file} is {f'a {file.suffix}' if file.suffix else 'without a suffix'}",
                "Convert or rename it",
            )
    try:
        empty = all(file.stat().st_size == 0 for file in files)
    except OSError as error:
        raise _unreadable(error) from error
    if empty:
        raise InputError("the text has to hold something", f"{data} is empty", "Name a file with text")


def _unreadable(error: OSError) -> InputError:
    return InputError(
        "the text has to be readable", f"{error.filename}: {error.strerror}", "Check its permissions"
    )


def sha256_of_files(files: Sequence[Path]) -> str:
    """Return one SHA-256 over the suffixes and contents of all files, in order.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(file.suffix.lower().encode() + hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise _unreadable(error) from error
    return digest.hexdigest()


def local_documents(files: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents of the files, in order; empty files are left out.

    Raises:
        InputError: a file does not have the format of its suffix, or has no text column.
    """
    sizes = [file.stat().st_size for file in files]
    length = document_length(sum(sizes))
    for file, size in zip(files, sizes, strict=True):
        if size > 0:
            yield from map(Document.unnamed, _texts(file, length))


def _texts(file: Path, length: int) -> Iterator[str | Conversation]:
    kind = file.suffix.lower()
    try:
        yield from _READERS[kind](file, length)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            "text has to be UTF-8",
            f"{file} is not: {error.reason} ({error.object[error.start : error.start + 1]!r})",
            f"Convert it, from Latin-1 by `iconv -f latin1 -t utf-8 {file}`",
        ) from error
    except Exception as error:  # anything can be wrong with a user's file
        raise InputError(
            f"a {kind} file has to hold what its suffix says",
            f"{file} does not: {short_message(error)}",
            "Check how it was written",
        ) from error


def _plain_texts(file: Path, length: int) -> Iterator[str]:
    rows = IterableDataset.from_text(str(file), keep_linebreaks=True)
    return documents_of_lines((row["text"] for row in rows), length)


def _json_texts(file: Path, _: int) -> Iterator[str | Conversation]:
    return contents_of_rows(_json_rows(file), str(file))


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    # Line by line: the JSON loader of datasets refuses rows whose columns differ from the first's.
    for number, line in enumerate(IterableDataset.from_text(str(file)), start=1):
        if not line["text"].strip():
            continue
        try:
            row = json.loads(line["text"])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        yield row


def _parquet_texts(file: Path, _: int) -> Iterator[str | Conversation]:
    if pyarrow.parquet.read_metadata(file).num_rows == 0:
        return iter(())
    rows = IterableDataset.from_parquet(str(file))
    return contents_of_rows(rows, str(file))


_READERS: dict[str, Callable[[Path, int], Iterator[str | Conversation]]] = {
    ".txt": _plain_texts,
    ".jsonl": _json_texts,
    ".parquet": _parquet_texts,
}
