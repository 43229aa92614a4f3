"""Opens the Optuna storage (a journal in the run directory, or what the user names) and its studies.

A server that becomes unreachable during a run is retried; one that is unreachable at the start is an error.
"""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from sqlalchemy import URL, create_engine, event, func, make_url, select
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError

from evaluators.huggingface.library_output import short_message
from search.storage.journal import Journal
from search.storage.retry import ReconnectingStorage, Retry
from search.terminal.command import redact_password
from space.input_error import InputError

_PROXY_PORT = 13000
_OPENING_SECONDS = 10
#: Id of the advisory lock held while the tables are created; an arbitrary number.
_LOCK = 0x51135EA2C4

#: libpq settings that detect a vanished host within a minute.
_LIBPQ = {
    "connect_timeout": _OPENING_SECONDS,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
}


def open_database(url: URL, name: str) -> BaseStorage:
    """Open an SQL database on a server, and create its tables if they do not exist.

    Args:
        url: address of the database; plain ``postgresql://`` means psycopg 3.
        name: name of the storage, for messages.

    Raises:
        ImportError: the driver is not installed.
        sqlalchemy.exc.SQLAlchemyError: the database is not reachable or not writable.
    """
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    libpq = url.drivername in ("postgresql+psycopg", "postgresql+psycopg2")
    settings = {"connect_args": _LIBPQ if libpq else {}}
    engine = create_engine(url, **settings)
    try:
        engine.connect().close()  # fail at once if the server is unreachable at the start
        lost = (OperationalError, InterfaceError, StorageInternalError)
        database = Retry(name, lost).call(lambda: _open_with_tables(engine, settings))
    finally:
        engine.dispose()
    event.listen(database.engine, "handle_error", _raise_connection_error)
    weakref.finalize(
        database, database.engine.dispose
    )  # close connections properly, not only by garbage collection
    return ReconnectingStorage(get_storage(database), Retry(name, ConnectionError))


def _open_with_tables(engine: Engine, settings: dict[str, Any]) -> RDBStorage:
    """Open a database; if several processes find it empty, one creates the tables and the others wait."""
    url = engine.url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        return RDBStorage(url, settings)


def _raise_connection_error(context: ExceptionContext) -> None:
    """Turn a connection failure into a ``ConnectionError``, which Optuna does not catch.

    After an SQL error, Optuna itself repeats the creation of a trial, whether or not it was committed.
    """
    driver = context.dialect.loaded_dbapi
    faults = (driver.OperationalError, driver.InterfaceError)
    if isinstance(context.original_exception, faults):
        raise ConnectionError(short_message(context.original_exception))


def open_proxy(address: str) -> BaseStorage:
    """Connect to Optuna's gRPC proxy.

    Args:
        address: address of the form ``grpc://HOST:PORT``; the default port is 13000.

    Raises:
        ImportError: grpcio is not installed.
        ValueError: the address has no host.
        ConnectionError: no server answers.
        grpc.RpcError: the server that answers is not Optuna's.
    """
    import grpc

    parts = urlsplit(address)
    if not parts.hostname or parts.path.strip("/"):
        raise ValueError("no address of the form grpc://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=parts.port or _PROXY_PORT)
    proxy.wait_server_ready(timeout=_OPENING_SECONDS)
    proxy.get_all_studies()
    return ReconnectingStorage(proxy, Retry(address, grpc.RpcError))


def open_storage(text: str, directory: Path) -> BaseStorage:
    """Open a storage.

    Args:
        text: a path that ends in ``.journal``, an SQLAlchemy URL, ``grpc://HOST:PORT``, or nothing for
            ``study.journal`` in ``directory``.
        directory: run directory.

    Raises:
        InputError: the storage cannot be opened, or its driver is not installed.
    """
    name = redact_password(text or str(directory / "study.journal"))
    try:
        return _open(text or str(directory / "study.journal"), name)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            "A storage on a server needs its driver",
            f"{name}: {short_message(error.__cause__ or error)}",
            "Install it: the extra slimsearch[hosts] has those of PostgreSQL and of Optuna's gRPC proxy",
        ) from None
    except Exception as error:  # SQLAlchemy, gRPC and the drivers raise many types
        raise InputError(
            "The Optuna storage has to be reachable",
            f"{name} answered: {short_message(error)}",
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
    """Create a study, or load it if it exists.

    Args:
        storage: an open storage.
        name: name of the study.
        objectives: names of the objectives, all minimised.
        units: unit of each objective.
        space: description of the search space, different for different spaces.

    Raises:
        InputError: the study exists with other objectives or another search space.
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
    if (existing := study.user_attrs["space"]) != space:
        raise InputError(
            "A study keeps its search space",
            f"{name} was begun with {existing}, and {space} was asked",
            "Take another --study-name",
        )
    return study
