"""Where the studies live: Optuna's own storages, chosen by what the user names."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from evaluators.one_line import one_line
from space.input_error import InputError

#: How each line of a journal begins; a file of anything else is left as it is.
_RECORD = b'{"op_code":'


def open_storage(text: str, directory: Path) -> BaseStorage:
    """Open a storage.

    Args:
        text: an SQLAlchemy URL, a path that ends in ``.journal``, or nothing for SQLite in
            ``directory``.
        directory: of the run.

    Raises:
        InputError: the storage cannot be opened.
    """
    url = text or _sqlite(directory / "study.db")
    try:
        return _open_journal(text) if text.endswith(".journal") else RDBStorage(url)
    except Exception as error:  # SQLAlchemy and its drivers raise whatever they like
        raise InputError(
            "The Optuna storage has to be reachable",
            f"{_without_password(url)} answered: {one_line(error)}",
            "Check --storage, for example postgresql://user@host/name or runs/shared.journal",
        ) from None


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _sqlite(path: Path) -> str:
    """The URL of a file, whatever characters its path holds."""
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()


def _open_journal(path: str) -> JournalStorage:
    """Open a journal; half a line that a killed process left at its end is taken away first."""
    lock = JournalFileSymlinkLock(path)
    backend = JournalFileBackend(path, lock)
    lock.acquire()
    try:
        with Path(path).open("rb+") as file:
            lines, _, last = file.read().rpartition(b"\n")
            if _RECORD.startswith(last[: len(_RECORD)]):
                file.truncate(len(lines) + bool(lines))
    finally:
        lock.release()
    return JournalStorage(backend)


def open_study(
    storage: BaseStorage, name: str, objectives: tuple[str, ...], units: dict[str, str], space: str
) -> optuna.Study:
    """Create a study, or load it if it is there.

    Args:
        storage: that is open.
        name: of the study.
        objectives: minimised.
        units: of each objective.
        space: what is searched, in words that differ if the spaces do.

    Raises:
        InputError: a study of this name has other objectives or searches another space.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize"] * len(objectives), load_if_exists=True
    )
    names = [f"{objective} ({units[objective]})" for objective in objectives]
    minimised = study.directions == [StudyDirection.MINIMIZE] * len(objectives)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names is None and minimised:
            study.set_metric_names(names)
    if study.metric_names != names or not minimised:
        others = ", ".join(study.metric_names or [f"{len(study.directions)} that are not named"])
        raise InputError(
            "A study keeps its objectives",
            f"{name} has {others}, and {', '.join(objectives)} was asked",
            "Take another --study-name",
        )
    if "space" not in study.user_attrs:
        study.set_user_attr("space", space)
    if (begun := study.user_attrs["space"]) != space:
        raise InputError(
            "A study keeps its search space",
            f"{name} was begun with {begun}, and {space} was asked",
            "Take another --study-name",
        )
    return study
