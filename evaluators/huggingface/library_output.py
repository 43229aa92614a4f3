"""Silence other libraries, and quote their errors in short.

Libraries write progress bars and warnings straight to the terminal and would break the live display. This
project logs what users should know itself; only the libraries' warnings about retries are passed on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets.utils as datasets_bars
from transformers.utils import logging as transformers_bars

logger = logging.getLogger(__name__)
_LIBRARIES = ("transformers", "datasets", "huggingface_hub")
#: The modules of the libraries that log retries after a connection broke.
_RETRYING = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "datasets.utils.file_utils")
_MOST_CHARACTERS = 300


def short_message(message: BaseException | str) -> str:
    """Return the message of an error or warning on one line of at most 300 characters, without full stop."""
    text = " ".join(str(message).split()).rstrip(".") or type(message).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context the libraries print nothing; afterwards their settings are restored.

    The bars of ``snapshot_download`` are not covered: ``hub.LoggedBytes`` replaces them.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in _LIBRARIES:
            stack.enter_context(_redirected(logging.getLogger(name)))
        stack.callback(transformers_bars.set_tqdm_hook, transformers_bars.set_tqdm_hook(_no_bar))
        if not datasets_bars.are_progress_bars_disabled():
            datasets_bars.disable_progress_bars()
            stack.callback(datasets_bars.enable_progress_bars)
        yield


@contextmanager
def _redirected(library: logging.Logger) -> Iterator[None]:
    handlers, propagate, level = library.handlers, library.propagate, library.level
    library.handlers, library.propagate = [_RetryMessages()], False
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.handlers, library.propagate = handlers, propagate
        library.setLevel(level)


class _RetryMessages(logging.Handler):
    """Passes on messages about retries after a connection broke."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in _RETRYING:
            logger.warning("%s", short_message(record.getMessage()))


def _no_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return factory(*args, **{**options, "disable": True})
