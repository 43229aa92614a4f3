"""``python -m search.dashboard RUN``: Optuna's dashboard of a run, while it works and after it.

It listens on 127.0.0.1 only, since it has no authentication. Users can write notes and add files there;
requests that would delete or change a trial or a study are refused.
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
#: Content is rewritten each time the number of trials has grown by this factor, which bounds the total cost.
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
    """A server that answers requests in daemon threads, so that open requests do not delay its exit."""

    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    """A request handler without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the dashboard until the user interrupts it, and return the exit status."""
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
        stopped = threading.Event()
        renewal = threading.Thread(target=keep_current, args=(run, store, stopped), daemon=True)
        if not finished:
            renewal.start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass  # Ctrl-C is the way to stop the server
        finally:
            stopped.set()
    return 0


def artifact_store(run: SavedRun) -> FileSystemArtifactStore:
    """Return the artifact store of a run: ``artifacts/`` in its directory, created if needed."""
    folder = run.path / "artifacts"
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(folder)


def server_of(app: App, port: int | None) -> WSGIServer:
    """Create a server that listens on 127.0.0.1; ``serve_forever`` makes it answer.

    Args:
        app: the WSGI application.
        port: port to listen on; None for the first free one from 8080 on.

    Raises:
        InputError: the port is taken or cannot be opened.
    """
    for number in [port] if port is not None else range(PORT, PORT + _PORTS_TRIED):
        try:
            return make_server(HOST, number, app, server_class=_Server, handler_class=_SilentHandler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
    wanted = f"{HOST}:{port}: {why}" if port is not None else f"all from {PORT} to {number} are taken"
    raise InputError("The dashboard needs a port that is free", wanted, "Name another with --port")


def guard(app: App) -> App:
    """Wrap the application so that it refuses harmful requests and those from other sites.

    Without the check of ``Origin`` and ``Host``, another page open in the browser could write here (CSRF) or,
    with a domain name that resolves to 127.0.0.1, read (DNS rebinding).
    """

    def call(environ: Environ, respond: Respond) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        reads = method in ("GET", "HEAD", "OPTIONS")
        origin = environ.get("HTTP_ORIGIN")
        addresses = [f"//{environ.get('HTTP_HOST', '')}", *([origin] if origin else [])]
        if not all(map(_is_local, addresses)):
            return _forbid(respond, "This dashboard answers to 127.0.0.1 and localhost alone.")
        if not reads and not _WRITES.fullmatch(path):
            return _forbid(respond, "The dashboard of a run takes notes and files, and nothing else.")
        return app(environ, respond)

    return call


def _is_local(address: str) -> bool:
    """Return whether an address names this machine by a name that no other host can have."""
    try:
        return urlsplit(address).hostname in _NAMES
    except ValueError:
        return False


def _forbid(respond: Respond, reason: str) -> Iterable[bytes]:
    status = HTTPStatus.FORBIDDEN
    respond(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
    return [f'{{"reason": "{reason}"}}'.encode()]


def keep_current(
    run: SavedRun, store: FileSystemArtifactStore, stopped: threading.Event, every: float = _LOOK_SECONDS
) -> None:
    """Rewrite the content as the run goes on, and once more when it is finished.

    Args:
        run: a run that was unfinished when its content was last written.
        store: the run's artifacts.
        stopped: event that ends the loop; set when the server stops.
        every: seconds between checks for new results.
    """
    (trials, retrained), finished = _count_finished(run), False
    while not finished and not stopped.wait(every):
        try:
            (trials_now, retrained_now), over_now = _count_finished(run), run.finished
            if over_now or retrained_now > retrained or trials_now >= max(trials + 1, _GROWTH * trials):
                write_content(find_run(run.path), store)
                trials, retrained, finished = trials_now, retrained_now, over_now
        except Exception as error:  # such as an unreachable storage server, which may come back
            logging.getLogger(__name__).warning("the notes could not be renewed: %s", error)


def _count_finished(run: SavedRun) -> tuple[int, int]:
    """Return the numbers of finished trials and of finished retrainings."""
    trials = (trial for study in run.studies for trial in study.get_trials(deepcopy=False))
    results = run.directory.retraining.glob("*.json")
    return sum(trial.state.is_finished() for trial in trials), len(list(results))


if __name__ == "__main__":
    sys.exit(main())
