"""The Hugging Face hub: recognise its ids, log downloads, and turn its failures into messages for the user.

The hub's clients raise low-level errors, often several causes deep. A user needs to know which rule was
broken and how to go on, also without a network.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

#: The HTTP client of huggingface_hub: httpx2 of version 2, httpx of version 1; both may be installed.
http_client: Any = importlib.import_module(
    next(kind.__module__ for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith("httpx"))
)

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
#: Ids that the hub allows: ``NAME`` or ``OWNER/NAME``.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def may_be_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def not_found(name: str) -> str:
    """Return that a path does not exist, with similar names that do: a clause for an ``InputError``."""
    path = Path(name).expanduser()
    return f"{path} does not exist{_suggestion(path)}"


def _suggestion(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    try:
        names = [child.name for child in folder.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=3)
    return f" (did you mean {' or '.join(str(folder / name) for name in near)}?)" if near else ""


class LoggedBytes:
    """Replaces a progress bar of the hub's client: logs every 10 seconds how much has arrived.

    It has the methods of a bar that the client calls. The client opens several bars; only the one that
    counts the bytes on disk logs.
    """

    def __init__(self, *_: object, desc: str = "", total: float | None = None, **__: object) -> None:
        self.total, self.n = total, 0.0
        self.format_dict: dict[str, object] = {}
        self._logs = desc.startswith("Reconstructing")
        self._logged_at = time.monotonic()

    def __enter__(self) -> LoggedBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count ``n`` more bytes."""
        self.n += n or 0
        if self._logs and time.monotonic() - self._logged_at > _SECONDS_BETWEEN_LINES:
            self._logged_at = time.monotonic()
            logger.info("fetched %.0f of %.0f MB", self.n / 1e6, (self.total or self.n) / 1e6)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def refresh(self) -> None:
        """Do nothing: there is no bar to draw."""

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Do nothing: there is no bar to draw."""

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Do nothing: there is no bar to draw."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Do nothing: there is no bar to draw."""


class HubUnavailableError(InputError):
    """The hub could not be reached, or the connection broke: a later attempt may succeed."""


@dataclass(frozen=True)
class HubRequest:
    """A repository that is requested from the hub.

    Attributes:
        kind: ``model`` or ``dataset``.
        id: the id of the repository.
        revision: branch, tag or commit; None: the default branch.
    """

    kind: str
    id: str
    revision: str | None = None

    @property
    def flag(self) -> str:
        """The command line flag with which a user names it."""
        return "--model" if self.kind == "model" else "--data"

    @property
    def page(self) -> str:
        """Its web address."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    @property
    def rule(self) -> str:
        """The rule of error messages: what the flag accepts."""
        return f"{self.flag} takes a path or the id of a {self.kind} on the hub"

    @property
    def offline(self) -> str:
        """The remedy of error messages: how to get it without the hub."""
        kind = " --repo-type dataset" if self.kind == "dataset" else ""
        command = f"hf download {self.id}{kind} --local-dir DIR"
        return f"where there is a network run `{command}`, bring DIR here and give {self.flag} DIR"


@contextmanager
def hub_refusals(wanted: HubRequest) -> Iterator[None]:
    """Within the context, failures of the hub become ``InputError``; other errors pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refusal = refusal_of(error, wanted)
        if refusal is None:
            raise
        raise refusal from error


def refusal_of(error: BaseException, wanted: HubRequest) -> InputError | None:
    """Return the message for a failure of the hub's clients; None if the failure is not the hub's."""
    causes = list(_causes(error))
    for describe in (_gated, _missing, _unreachable, _http_error, _interrupted, _disk_full):
        for cause in causes:
            if refusal := describe(cause, wanted):
                return refusal
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _gated(error: BaseException, wanted: HubRequest) -> InputError | None:
    gated = isinstance(error, DatasetNotFoundError) and "gated" in str(error)
    if not gated and not isinstance(error, GatedRepoError):
        return None
    return InputError(
        f"the {wanted.kind} has to be one that you may download",
        f"{wanted.id} is gated: its owners ask for consent to their terms",
        f"Agree to them at {wanted.page}, then run `hf auth login` or set HF_TOKEN; or {wanted.offline}",
    )


def _missing(error: BaseException, wanted: HubRequest) -> InputError | None:
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            "the revision has to be a branch, tag or commit of the repository",
            f"{wanted.id} has none called {wanted.revision}",
            f"See {wanted.page}/tree/main for those it has, or leave the revision out",
        )
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError | HFValidationError):
        return InputError(
            wanted.rule,
            f"the hub knows no public {wanted.kind} {wanted.id}, and {not_found(wanted.id)}",
            "Check the spelling; for a private one run `hf auth login` or set HF_TOKEN",
        )
    return None


def _unreachable(error: BaseException, wanted: HubRequest) -> InputError | None:
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailableError(
            wanted.rule,
            f"{not_found(wanted.id)}, {constants.HF_HUB_CACHE} does not have all of it, "
            "and HF_HUB_OFFLINE forbids to ask the hub",
            f"Unset HF_HUB_OFFLINE; or {wanted.offline}",
        )
    http = http_client
    unreached = (http.ConnectError, http.ConnectTimeout, http.ProxyError, http.UnsupportedProtocol)
    if isinstance(error, unreached) or (isinstance(error, ConnectionError) and "reach" in str(error)):
        return HubUnavailableError(
            wanted.rule,
            f"{not_found(wanted.id)}, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({short_message(error)})",
            f"Check the name and the network (HF_ENDPOINT, HTTPS_PROXY); or {wanted.offline}",
        )
    return None


def _http_error(error: BaseException, wanted: HubRequest) -> InputError | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code
    rule, values = f"the hub has to hand out {wanted.id}", f"it answered {status} ({short_message(error)})"
    if status in (401, 403):
        remedy = f"Run `hf auth login` or set HF_TOKEN to a token that may read {wanted.page}"
        return InputError(rule, values, remedy)
    return HubUnavailableError(rule, values, f"Try again later; or {wanted.offline}")


def _interrupted(error: BaseException, wanted: HubRequest) -> InputError | None:
    inconsistent = isinstance(error, OSError) and "Consistency check failed" in str(error)
    lost = (http_client.TransportError, ConnectionError, XetDownloadError, LocalEntryNotFoundError)
    if not inconsistent and not isinstance(error, lost):
        return None
    return HubUnavailableError(
        "files of the hub have to arrive whole",
        f"the connection to {constants.ENDPOINT} broke off within {wanted.id}, several times over "
        f"({short_message(error)}), and what came of the file was thrown away",
        f"Start the same command again, files that arrived whole are kept; or {wanted.offline}",
    )


def _disk_full(error: BaseException, wanted: HubRequest) -> InputError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return InputError(
        "the hub's files need room on the disk",
        f"there is none left for {wanted.id} in {constants.HF_HOME}",
        "Make room, or set HF_HOME to a folder on a larger disk",
    )
