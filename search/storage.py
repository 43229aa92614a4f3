"""Where the studies live: Optuna's own storages, chosen by what the user names."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from space.input_error import InputError


def open_storage(text: str, directory: Path) -> BaseStorage:
    """Open a storage.

    Args:
        text: an SQLAlchemy URL, a path that ends in ``.journal``, or nothing for SQLite in
            ``directory``.
        directory: of the run.

    Raises:
        InputError: the storage cannot be opened.
    """
    if text.endswith(".journal"):
        return JournalStorage(JournalFileBackend(text))
    url = text or f"sqlite:///{(directory / 'study.db').resolve()}"
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy and its drivers raise whatever they like
        raise InputError(
            "The Optuna storage has to be reachable",
            f"{url} answered: {str(error).splitlines()[0]}",
            "Check --storage, for example postgresql://user@host/name or runs/shared.journal",
        ) from None


def open_study(
    storage: BaseStorage, name: str, objectives: tuple[str, ...], units: dict[str, str]
) -> optuna.Study:
    """Create a study, or load it if it is there.

    Raises:
        InputError: a study of this name has other objectives.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize"] * len(objectives), load_if_exists=True
    )
    names = [f"{objective} ({units[objective]})" for objective in objectives]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names is None and len(study.directions) == len(objectives):
            study.set_metric_names(names)
    if study.metric_names != names:
        raise InputError(
            "A study keeps its objectives",
            f"{name} has {len(study.directions)} others than {', '.join(objectives)}",
            "Take another --study-name",
        )
    return study
