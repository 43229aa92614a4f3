"""Rows of ``.parquet`` files and of folders that ``datasets.save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, Features, Json, LargeList, List

from evaluators.huggingface.library_output import quiet_libraries
from space.input_error import InputError

#: Rows may be as long as books.
_ROWS_AT_ONCE = 128


def parquet_rows(file: Path) -> tuple[Iterator[dict[str, Any]], Features]:
    """Return the rows and the types of their columns; columns of images and the like are left out."""
    features = _without_media(Features.from_arrow_schema(pyarrow.parquet.read_schema(file)), file)
    return _parquet_rows(file, features), features


def _parquet_rows(file: Path, features: Features) -> Iterator[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=list(features)):
            yield from map(features.decode_example, batch.to_pylist())


def saved_rows(folder: Path) -> tuple[Iterator[dict[str, Any]], Features]:
    """Return the rows of a saved ``datasets.Dataset``, as ``parquet_rows`` does those of a file."""
    with quiet_libraries():
        dataset = Dataset.load_from_disk(str(folder))
    features = _without_media(dataset.features, folder)
    # All columns, whatever format was saved with them.
    tables = dataset.with_format("arrow").select_columns(list(features)).iter(_ROWS_AT_ONCE)
    return (features.decode_example(row) for table in tables for row in table.to_pylist()), features


def _without_media(features: Features, table: Path) -> Features:
    kept = Features({name: kind for name, kind in features.items() if not _holds_media(kind)})
    if not kept:
        raise InputError(
            "a table has to have a column of text",
            f"the columns of {table} are {', '.join(features) or 'none'}",
            "Name another",
        )
    return kept


def _holds_media(kind: Any) -> bool:
    """Whether a column is one of images, sounds and the like, whose decoding takes libraries of their own."""
    match kind:
        case dict():
            return any(map(_holds_media, kind.values()))
        case List() | LargeList():
            return _holds_media(kind.feature)
        case _:
            return hasattr(kind, "decode_example") and not isinstance(kind, Json)
