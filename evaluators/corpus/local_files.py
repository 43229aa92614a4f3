"""Find the files that a user's ``--data`` names, and hash them."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from evaluators.huggingface.hub import may_be_hub_id, not_found
from space.input_error import InputError

logger = logging.getLogger(__name__)

TEXT_KINDS = (".txt", ".jsonl", ".json", ".csv")
COMPRESSIONS = (".gz", ".zst")
PARQUET = ".parquet"
#: The kind of a folder that ``Dataset.save_to_disk`` wrote.
SAVED = "save_to_disk"
_KINDS = frozenset(
    {
        *TEXT_KINDS,
        *(kind + compression for kind in TEXT_KINDS for compression in COMPRESSIONS),
        PARQUET,
        SAVED,
    }
)
_RULE = (
    "--data takes .txt, .jsonl, .json and .csv files, each also as .gz or .zst, .parquet files, a folder or "
    "glob of such, a folder of save_to_disk, or a hub dataset id"
)
#: What lies beside texts and says something about them, by the name before the first dot.
_ABOUT = frozenset({"readme", "license", "licence", "copying", "notice", "citation", "changelog"})
_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_MOST_NAMES = 5


def find_files(data: str) -> list[Path]:
    """Return the files that ``data`` names, sorted; an empty list if it looks like a hub id.

    A folder that ``datasets.save_to_disk`` wrote counts as one file. What is there by that name is taken as
    it is, brackets and all; otherwise the name may be a glob. Of a folder or glob, what cannot be text is
    passed over and named in the log.

    Raises:
        InputError: there is no such file, its suffix is unknown, or all files are empty.
    """
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            files = _readable(_files_in(path), data, f"there is none in {data}")
        elif path.exists():
            files = [path]
        elif glob.has_magic(data):
            files = _readable(_matches(path), data, f"nothing matches {data}")
        elif may_be_hub_id(data.partition(":")[0].partition("@")[0]) and kind_of(path) not in _KINDS:
            return []
        else:
            raise InputError(_RULE, not_found(data), "Check the path")
        _refuse_unreadable(files, data)
    except OSError as error:
        raise unreadable(error) from error
    return files


def kind_of(file: Path) -> str:
    """Return the suffix in lower case, with the one before it if that of a compression is last."""
    if _is_saved_dataset(file):
        return SAVED
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:])


def _is_saved_dataset(path: Path) -> bool:
    return path.is_dir() and all((path / name).is_file() for name in ("state.json", "dataset_info.json"))


def _files_in(folder: Path) -> list[Path]:
    """Return everything in a folder and those within; links to folders are not followed."""
    if dataset := _saved_dataset(folder):
        return [dataset]
    files = []
    for entry in folder.iterdir():
        within = entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
        files.extend(_files_in(entry) if within else [entry])
    return files


def _saved_dataset(folder: Path) -> Path | None:
    """Return the dataset that was saved in a folder: its split for training, or the only one."""
    if not (folder / "dataset_dict.json").is_file():
        return folder if _is_saved_dataset(folder) else None
    splits = sorted(entry.name for entry in folder.iterdir() if _is_saved_dataset(entry))
    if "train" not in splits and len(splits) != 1:
        raise InputError(
            "a dataset saved in splits has to have one called train, or only one",
            f"{folder} has {', '.join(splits) or 'none'}",
            f"Name the folder of one, as {folder / (splits or ['train'])[0]}",
        )
    chosen = "train" if "train" in splits else splits[0]
    if len(splits) > 1:
        _tell_once(f"{folder}: its split {chosen} is read, of {', '.join(splits)}")
    return folder / chosen


def _matches(pattern: Path) -> list[Path]:
    files = []
    for match in glob.glob(_with_existing_escaped(pattern), recursive=True):
        path = Path(match)
        if path.is_file():
            files.append(path)
        elif path.is_dir() and (dataset := _saved_dataset(path)):
            files.append(dataset)
    return files


def _with_existing_escaped(pattern: Path) -> str:
    """Return a pattern in which the leading folders that are there by that very name stand for themselves."""
    existing = next((folder for folder in pattern.parents if folder.exists()), Path())
    return str(Path(glob.escape(str(existing))) / pattern.relative_to(existing))


def _readable(files: Iterable[Path], data: str, none: str) -> list[Path]:
    """Return the files that can be text, sorted, and log what is passed over."""
    files = sorted(files)
    readable = [file for file in files if _is_text(file)]
    others = _names([file.name for file in sorted(set(files).difference(readable))])
    if not readable:
        found = f"{none} but {others}" if files else none
        raise InputError(_RULE, found, "Check the name, or convert what is there")
    if others:
        _tell_once(f"{data}: passed over {others}")
    return readable


def _is_text(file: Path) -> bool:
    kind, name = kind_of(file), file.name.lower()
    if kind == SAVED:
        return True
    stray = name.startswith(".") or name.partition(".")[0] in _ABOUT or name in _METADATA
    return kind in _KINDS and not stray and file.is_file()


def _names(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


@functools.cache  # the same name is looked up several times in a run
def _tell_once(line: str) -> None:
    logger.info("%s", line)


def _refuse_unreadable(files: Sequence[Path], data: str) -> None:
    for file in files:
        kind = kind_of(file)
        if kind not in _KINDS:
            raise InputError(
                _RULE, f"{file} is {f'a {kind}' if kind else 'without a suffix'}", "Convert or rename it"
            )
    if all(size_of(file) == 0 for file in files):
        raise InputError("the text has to hold something", f"{data} is empty", "Name a file with text")


def size_of(file: Path) -> int:
    """Return the bytes of a file, compressed as it lies there, or of a saved dataset's tables."""
    return sum(part.stat().st_size for part in _parts(file))


def _parts(file: Path) -> list[Path]:
    """Return the files that hold the text of one: itself, or the tables of a saved dataset in order."""
    if not _is_saved_dataset(file):
        return [file]
    try:
        state = json.loads((file / "state.json").read_text(encoding="utf-8"))
        return [file / part["filename"] for part in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "state.json of a saved dataset has to name its tables",
            f"that of {file} does not",
            "Save the dataset again",
        ) from error


def unreadable(error: OSError) -> InputError:
    """Return the refusal of a file that the system does not let us read."""
    return InputError(
        "the text has to be readable",
        f"{error.filename}: {error.strerror}",
        "Check that it is there and may be read",
    )


def sha256_of_files(files: Sequence[Path]) -> str:
    """Return one SHA-256 over the kinds and contents of all files, in order.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            for part in _parts(file):
                with part.open("rb") as stream:
                    digest.update(kind_of(file).encode() + hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise unreadable(error) from error
    return digest.hexdigest()
