"""Where the studies live: a journal in the run directory, or what the user names."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import make_url

from evaluators.huggingface.one_line import one_line
from search.storage.journal import Journal
from search.storage.servers import open_database, open_proxy
from search.terminal.password import without_password
from space.input_error import InputError


def open_storage(text: str, directory: Path) -> BaseStorage:
    """Open a storage.

    Args:
        text: a path that ends in ``.journal``, an SQLAlchemy URL, ``grpc://HOST:PORT``, or nothing for
            ``study.journal`` in ``directory``.
        directory: of the run.

    Raises:
        InputError: the storage cannot be opened, or its driver is not installed.
    """
    name = without_password(text or str(directory / "study.journal"))
    try:
        return _open(text or str(directory / "study.journal"), name)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            "A storage on a server needs its driver",
            f"{name}: {one_line(error.__cause__ or error)}",
            "Install it: the extra slimsearch[hosts] has those of PostgreSQL and of Optuna's gRPC proxy",
        ) from None
    except Exception as error:  # SQLAlchemy, gRPC and the drivers raise whatever they like
        raise InputError(
            "The Optuna storage has to be reachable",
            f"{name} answered: {one_line(error)}",
            "Check --storage, for example postgresql://user@host/name or runs/shared.journal",
        ) from None


def _open(text: str, name: str) -> BaseStorage:
    scheme, is_address, _ = text.partition("://")
    if scheme == "grpc":
        return open_proxy(text)
    if text.endswith(".journal") and not is_address:
        return JournalStorage(Journal(Path(text)))
    url = make_url(text)
    return RDBStorage(text) if url.get_backend_name() == "sqlite" else open_database(url, name)


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
