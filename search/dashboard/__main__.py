"""``python -m search.dashboard RUN``: Optuna's dashboard of a run, while it works and after it.

It listens on this machine alone, since it asks nobody who they are. Notes can be written there and files
added; what would take a trial or a study away from the run is refused.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Annotated, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import tyro
from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import wsgi

from search.dashboard.content import write_content
from search.runs.saved_run import SavedRun, find_run
from search.storage.workers import Workers
from search.terminal.command import exit_status, flag_help
from space.input_error import InputError

HOST, PORT = "127.0.0.1", 8080
_PORTS_TRIED = 100
_LOOK_SECONDS = 30.0
#: Content is written anew once there are so many times the trials, so that what it takes stays in proportion.
_GROWTH = 1.25
_WRITES = re.compile(r"/api/(studies/\d+(/\d+)?/note|artifacts/.*)/?")
_NAMES = {"127.0.0.1", "localhost", "::1"}
_ABOUT = """examples:
  python -m search.dashboard demo-1M
  python -m search.dashboard runs/demo-1M --port 9000
  python -m search.dashboard /shared/runs/qwen3-4B

Look at a run in Optuna's dashboard.

Prints its address, and serves it to this machine alone until Ctrl-C. Of a run that is at work, notes and
figures are renewed with every quarter more of trials, with every model that was retrained, and
when it is finished.
"""
Environ = dict[str, Any]
Respond = Callable[..., Any]
App = Callable[[Environ, Respond], Iterable[bytes]]


@flag_help
@dataclass(frozen=True)
class DashboardFlags:
    """Look at a run in Optuna's dashboard."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Directory of the run, or its name below runs/."""
    port: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """That it listens on. Default: 8080, or the next that is free."""


class _Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at a time; those that are open do not keep it from ending."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the dashboard that the arguments ask for until it is stopped, and return the exit status."""
    return exit_status(partial(_main, sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    flags = tyro.cli(
        DashboardFlags,
        args=arguments,
        prog="python -m search.dashboard",
        description=_ABOUT,
    )
    run = find_run(flags.run)
    if run.config.storage.startswith("sqlite") and Workers(run.path).others():
        raise InputError(
            "With SQLite one process works on a run at a time",
            f"another one is at work in {run.path}",
            "Wait for it",
        )
    storage, store = run.studies[0]._storage, artifact_store(run)
    app = guard(wsgi(storage, artifact_store=store))
    with server_of(app, flags.port) as server:
        finished = run.finished
        write_content(run, store)
        print(f"http://{HOST}:{server.server_port}/", flush=True)
        gone = threading.Event()
        renewing = threading.Thread(target=keep_current, args=(run, store, gone), daemon=True)
        if not finished:
            renewing.start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass  # how one leaves it
        finally:
            gone.set()
    return 0


def artifact_store(run: SavedRun) -> FileSystemArtifactStore:
    """Where the artifacts of a run lie: ``artifacts/`` in its directory, made if it is not there."""
    folder = run.path / "artifacts"
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(folder)


def server_of(app: App, port: int | None) -> WSGIServer:
    """A server on this machine alone, which listens and does not answer yet.

    Args:
        app: that answers.
        port: to listen on; None for the first free one from 8080 on.

    Raises:
        InputError: the port is taken, or cannot be had.
    """
    for number in [port] if port is not None else range(PORT, PORT + _PORTS_TRIED):
        try:
            return make_server(HOST, number, app, server_class=_Server, handler_class=_Quiet)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
    wanted = f"{HOST}:{port}: {why}" if port is not None else f"all from {PORT} to {number} are taken"
    raise InputError("The dashboard needs a port that is free", wanted, "Name another with --port")


def guard(app: App) -> App:
    """The application without what would harm the run, and for pages of its own alone.

    A page from elsewhere that a browser has open could otherwise write here or, by a name of its own that
    stands for this machine, read.
    """

    def call(environ: Environ, respond: Respond) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        reads = method in ("GET", "HEAD", "OPTIONS")
        origin = environ.get("HTTP_ORIGIN")
        addressed = [f"//{environ.get('HTTP_HOST', '')}", *([origin] if origin else [])]
        if not all(map(_here, addressed)):
            return _refused(respond, "This dashboard answers to 127.0.0.1 and localhost alone.")
        if not reads and not _WRITES.fullmatch(path):
            return _refused(respond, "The dashboard of a run takes notes and files, and nothing else.")
        return app(environ, respond)

    return call


def _here(address: str) -> bool:
    """Whether an address is of this machine, by a name that nobody else can have."""
    try:
        return urlsplit(address).hostname in _NAMES
    except ValueError:
        return False


def _refused(respond: Respond, reason: str) -> Iterable[bytes]:
    status = HTTPStatus.FORBIDDEN
    respond(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
    return [f'{{"reason": "{reason}"}}'.encode()]


def keep_current(
    run: SavedRun, store: FileSystemArtifactStore, gone: threading.Event, every: float = _LOOK_SECONDS
) -> None:
    """Write the content anew as the run goes on, and once more when it is finished.

    Args:
        run: whose content was written before it was finished.
        store: of its artifacts.
        gone: set when nobody looks any more.
        every: so many seconds it is looked whether there is more.
    """
    (trials, retrained), finished = _done(run), False
    while not finished and not gone.wait(every):
        try:
            (trials_now, retrained_now), over = _done(run), run.finished
            if over or retrained_now > retrained or trials_now >= max(trials + 1, _GROWTH * trials):
                write_content(find_run(run.path), store)
                trials, retrained, finished = trials_now, retrained_now, over
        except Exception as error:  # a server that is away; it may come back
            logging.getLogger(__name__).warning("the notes could not be renewed: %s", error)


def _done(run: SavedRun) -> tuple[int, int]:
    """How many trials are finished, and how many retrainings."""
    trials = (trial for study in run.studies for trial in study.get_trials(deepcopy=False))
    results = run.directory.retraining.glob("*.json")
    return sum(trial.state.is_finished() for trial in trials), len(list(results))


if __name__ == "__main__":
    sys.exit(main())
