"""Documents from local files of every kind that ``local_files`` finds.

Files are opened here, not by the loaders of ``datasets``: these take names for globs, refuse rows whose
columns differ from the first's, and ``load_dataset`` sends telemetry to a server on the internet.
"""

from __future__ import annotations

import errno
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from datasets import Features

from evaluators.corpus.conversations import Conversation
from evaluators.corpus.csv_rows import csv_rows
from evaluators.corpus.documents import Document, contents_of_rows, document_length, documents_of_lines
from evaluators.corpus.json_rows import json_line_rows, json_rows
from evaluators.corpus.local_files import (
    COMPRESSIONS,
    PARQUET,
    SAVED,
    kind_of,
    size_of,
    unreadable,
)
from evaluators.corpus.rejoining import lines_of_rows, recognise_lines
from evaluators.corpus.splitting import bounded_lines, row_limit, split_long
from evaluators.corpus.table_rows import parquet_rows, saved_rows
from evaluators.corpus.text_stream import open_text, unknown_encoding
from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]
Contents = Iterator[str | Conversation]


def local_documents(files: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents of the files, in order; empty files are left out.

    Rows and lines longer than ``row_limit`` of the size of all files are cut.

    Raises:
        InputError: a file does not have the format of its suffix, or has no text column.
    """
    sizes = [size_of(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size > 0:
            yield from map(Document.unnamed, _texts(file, sum(sizes)))


def _texts(file: Path, size: int) -> Contents:
    kind = kind_of(file)
    try:
        yield from _reader(kind)(file, size)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        byte = error.object[error.start : error.start + 1]
        raise unknown_encoding(file, f"{error.reason} ({byte!r})") from error
    except Exception as error:  # anything can be wrong with a user's file
        raise _refusal(error, file, kind) from error


def _refusal(error: Exception, file: Path, kind: str) -> InputError:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
        return unreadable(error)
    if kind.endswith(COMPRESSIONS) and isinstance(error, OSError | EOFError | zlib.error):
        return InputError(
            f"a {file.suffix} file has to be whole",
            f"{file} is not: {short_message(error)}",
            "Copy or compress it again",
        )
    held = "a folder of save_to_disk has to hold a dataset" if kind == SAVED else _held(kind)
    return InputError(held, f"{file} does not: {short_message(error)}", "Check how it was written")


def _held(kind: str) -> str:
    return f"a {kind} file has to hold what its suffix says"


def _reader(kind: str) -> Callable[[Path, int], Contents]:
    for compression in COMPRESSIONS:
        kind = kind.removesuffix(compression)
    return _READERS[kind]


def _plain_texts(file: Path, size: int) -> Contents:
    with open_text(file) as stream:
        yield from documents_of_lines(bounded_lines(stream, row_limit(size)), document_length(size))


def _json_line_texts(file: Path, size: int) -> Contents:
    return _stream_texts(file, size, json_line_rows)


def _json_texts(file: Path, size: int) -> Contents:
    return _stream_texts(file, size, json_rows)


def _csv_texts(file: Path, size: int) -> Contents:
    return _stream_texts(file, size, lambda stream: csv_rows(stream, str(file)))


def _stream_texts(file: Path, size: int, read: Callable[[TextIO], Iterable[Row]]) -> Contents:
    with open_text(file) as stream:
        yield from _row_texts(read(stream), file, size)


def _parquet_texts(file: Path, size: int) -> Contents:
    return _table_texts(*parquet_rows(file), file, size)


def _saved_texts(folder: Path, size: int) -> Contents:
    return _table_texts(*saved_rows(folder), folder, size)


def _table_texts(rows: Iterable[Row], features: Features, file: Path, size: int) -> Contents:
    are_lines, rows = recognise_lines(rows, features)
    if not are_lines:
        return _row_texts(rows, file, size)
    logger.info("%s: its rows are lines, many of them blank; they are read as one text", file)
    lines = (piece for line in lines_of_rows(rows) for piece in split_long(line, row_limit(size)))
    return documents_of_lines(lines, document_length(size))


def _row_texts(rows: Iterable[Row], file: Path, size: int) -> Contents:
    limit = row_limit(size)
    for content in contents_of_rows(rows, str(file)):
        if isinstance(content, Conversation):
            yield content
        else:
            yield from (piece for piece in split_long(content, limit) if not piece.isspace())


_READERS: dict[str, Callable[[Path, int], Contents]] = {
    ".txt": _plain_texts,
    ".jsonl": _json_line_texts,
    ".json": _json_texts,
    ".csv": _csv_texts,
    PARQUET: _parquet_texts,
    SAVED: _saved_texts,
}
