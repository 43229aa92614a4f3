"""A hub on loopback: the part of the hub's file API that its client uses to read repositories.

It can misbehave on purpose: gated repositories, and files whose connection is cut half-way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?$"
)
_FILE = re.compile(r"/(?P<dataset>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class Repository:
    """A repository of the hub at its newest commit.

    Attributes:
        files: content by path.
        gated: whether its files are refused to everyone.
        status: what it answers in place of anything else.
        before: the same repository at the commit before.
        cuts: how often the connection is still to be cut half-way through a file, by path.
    """

    files: dict[str, bytes]
    gated: bool = False
    status: HTTPStatus | None = None
    before: Repository | None = None
    cuts: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        """40 hexadecimal digits that change with the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()

    def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        """What the hub lists of a folder ("" is the whole repository)."""
        prefix = f"{folder}/" if folder else ""
        within = {path: content for path, content in self.files.items() if path.startswith(prefix)}
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in within.items()
            if recursive or "/" not in path.removeprefix(prefix)
        ]
        folders = {prefix + path.removeprefix(prefix).partition("/")[0] for path in within} - set(within)
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        return entries


class HubServer(ThreadingHTTPServer):
    """The server; ``models`` and ``datasets`` are its repositories by id."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve within the block; after it nothing listens on the port."""
        thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _RefusalError(Exception):
    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        try:
            if found := _API.match(path):
                self._describe(found)
            elif found := _FILE.match(path):
                self._send_file(found)
            else:
                raise _RefusalError(HTTPStatus.NOT_FOUND, "RepoNotFound", "no such address")
        except _RefusalError as refusal:
            self._send(
                refusal.status,
                json.dumps({"error": str(refusal)}).encode(),
                {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)},
            )

    def _repository(self, kind: str, id: str, revision: str) -> Repository:
        repositories = self.server.datasets if kind == "datasets" else self.server.models
        if id not in repositories:
            # The hub does not tell strangers whether a repository is private or absent.
            raise _RefusalError(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")
        repository = repositories[id]
        if repository.status is not None:
            raise _RefusalError(repository.status, "", repository.status.phrase)
        if revision == "main":
            return repository
        commit: Repository | None = repository
        while commit is not None and commit.commit != revision:
            commit = commit.before
        if commit is None:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _describe(self, found: re.Match[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        revision, _, folder = (found["rest"] or "main").partition("/")
        repository = self._repository(found["kind"], found["id"], revision)
        query = parse_qs(urlsplit(self.path).query)
        answer: object
        if found["what"] == "tree":
            answer = repository.tree(folder, recursive=query.get("recursive") == ["true"])
        elif found["what"] == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            answer = [entry for entry in repository.tree("", recursive=True) if entry["path"] in paths]
        else:
            siblings = [{"rfilename": path} for path in repository.files]
            answer = {"id": found["id"], "sha": repository.commit, "siblings": siblings, "tags": []}
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, found: re.Match[str]) -> None:
        kind = "datasets" if found["dataset"] else "models"
        repository = self._repository(kind, found["id"], found["revision"])
        if repository.gated:
            raise _RefusalError(
                HTTPStatus.UNAUTHORIZED, "GatedRepo", "Access to this repository is restricted"
            )
        path = found["path"]
        if path not in repository.files:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        content = repository.files[path]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repository.commit}
        headers["Accept-Ranges"] = "bytes"
        status = HTTPStatus.OK
        if wanted := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], HTTPStatus.PARTIAL_CONTENT
        cut = self.command == "GET" and repository.cuts.get(path, 0) > 0
        if cut:
            repository.cuts[path] -= 1
        self._send(status, content, headers, cut=cut)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        # A connection that outlived its answer would be served after the server has stopped.
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
