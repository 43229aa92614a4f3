"""Processes that need not import everything: forked from one that has.

``python -m search.run`` imports PyTorch and transformers for ten seconds, and the tests start it often: to
kill it, to run it beside itself, to see what it prints. A ``WarmPopen`` is such a process, forked by a server
that has imported all and done nothing else. It has a process number, an environment, a directory, streams and
signals of its own, as if the command had been typed; only latencies are measured in one short round.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import verified_once

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evaluators.metrics.latency import Workload

ROOT = Path(__file__).parents[1]
_MODULES = (
    "search.run",
    "search.family.family",
    "search.dashboard.__main__",
    "search.api",
    "tests.search.synthetic",
)
_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
_LENGTH = 8


class _Server:
    """The process that forks; it ends when this one does."""

    def __init__(self) -> None:
        # A forked process is an orphan at once, and so becomes a child of this one, which can wait for it.
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.warm_python", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self.close)

    def close(self) -> None:
        """Let it end."""
        self.socket.close()
        self.process.wait()

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """Start a process with these three streams, and return its number."""
        text = json.dumps(request).encode()
        socket.send_fds(self.socket, [len(text).to_bytes(_LENGTH, "big")], streams)
        self.socket.sendall(text)
        return int.from_bytes(_received(self.socket, _LENGTH), "big")


_servers: list[_Server] = []


class WarmPopen(subprocess.Popen[str]):
    """``subprocess.Popen`` of ``[sys.executable, "-m", MODULE, ...]`` or of ``-c CODE``."""

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        """Called by ``Popen`` in the place where it would start the program."""
        if sys.platform != "linux":  # only there can an orphan be waited for
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        (
            _,
            preexec,
            _,
            _,
            cwd,
            env,
            _,
            _,
            _,
            in_read,
            in_write,
            out_read,
            out_write,
            err_read,
            err_write,
            *_,
        ) = rest
        assert args[0] == sys.executable
        assert args[1] in ("-m", "-c")
        assert preexec is None
        if not _servers:
            _servers.append(_Server())
        request = {
            "arguments": args[1:],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(env or os.environ),
        }
        nothing = os.open(os.devnull, os.O_RDWR)
        streams = [
            nothing if in_read == -1 else in_read,
            1 if out_write == -1 else out_write,
            2 if err_write == -1 else err_write,
        ]
        try:
            self.pid = _servers[0].fork(request, streams)
            self._child_created = True
        finally:
            os.close(nothing)
            self._close_pipe_fds(in_read, in_write, out_read, out_write, err_read, err_write)  # type: ignore[attr-defined]


def warm_run(command: list[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with a ``WarmPopen``, both streams captured."""
    pipe = subprocess.PIPE
    with WarmPopen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def warm_group(command: list[str], processes: int, **options: Any) -> list[WarmPopen]:
    """Start a process group as a launcher would, the main process first: each knows its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipe, environment = subprocess.PIPE, options.pop("env", os.environ) | group
    return [
        WarmPopen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=pipe,
            stderr=pipe,
            text=True,
            **options,
        )
        for rank in range(processes)
    ]


def ends(group: Sequence[WarmPopen], timeout: float) -> tuple[list[int], str, str]:
    """Wait for all processes of a group; return their statuses, and what all wrote to either stream."""
    try:
        said = [one.communicate(timeout=timeout) for one in group]
    finally:
        for one in group:
            if one.poll() is None:
                one.kill()
    out, err = ("".join(parts) for parts in zip(*said, strict=True))
    return [one.returncode for one in group], out, err


def _received(stream: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = stream.recv(length - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _serve(stream: socket.socket) -> None:
    """Fork at each request, until the other end is closed."""
    while True:
        head, streams, _, _ = socket.recv_fds(stream, _LENGTH, 3)
        if not head:
            return
        request = json.loads(_received(stream, int.from_bytes(head, "big")))
        read, write = os.pipe()
        if (between := os.fork()) == 0:
            if (child := os.fork()) == 0:
                stream.close()
                _become(request, streams)
            os.write(write, child.to_bytes(_LENGTH, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        stream.sendall(os.read(read, _LENGTH))
        for one in (read, write, *streams):
            os.close(one)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Run the command of a request, and end."""
    for number, one in enumerate(streams):
        os.dup2(one, number)
    os.closerange(3, 256)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    kind, what, *rest = request["arguments"]
    sys.argv = [what if kind == "-m" else "-c", *rest]
    status = 1
    try:
        if kind == "-m":
            sys.modules.pop(what, None)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        with suppress(AttributeError, TypeError):
            status = 128 + signal.SIGINT if sys.exc_info()[0] is KeyboardInterrupt else 1
    finally:
        _end(status)


def _end(status: int) -> None:
    """End as the interpreter does: its exit functions, then its streams."""
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def brief(workloads: Mapping[str, Workload]) -> dict[str, Workload]:
    """Latencies in a tenth of the time, for tests that say nothing of their accuracy."""
    return {device: replace(load, repeats=1, timed_answer=2) for device, load in workloads.items()}


def main() -> None:
    """Import everything, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    if folder := os.environ.get(verified_once.FOLDER):
        verified_once.install(Path(folder))
    for module in _MODULES:
        importlib.import_module(module)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    from search.settings import costs

    costs._WORKLOADS = brief(costs._WORKLOADS)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    gc.enable()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
