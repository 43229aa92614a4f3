"""Other libraries' words: their progress bars and warnings kept back, their errors within our messages.

They write to the terminal past the console's live display. What a user should know this project
says itself, through ``logging``; what the libraries say of a bad connection is passed on that way.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets.utils as datasets_bars
from transformers.utils import logging as transformers_bars

_MOST_CHARACTERS = 300


def short_message(said: BaseException | str) -> str:
    """What an error or warning says, in one line of at most 300 characters, without the full stop."""
    text = " ".join(str(said).split()).rstrip(".") or type(said).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


logger = logging.getLogger(__name__)
_LIBRARIES = ("transformers", "datasets", "huggingface_hub")
#: The modules of the libraries that try again when a connection breaks, and say so.
_RETRYING = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "datasets.utils.file_utils")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block the libraries print nothing; after it they are as they were.

    The bars of ``snapshot_download`` are not covered: it is given its own (see ``downloads``).
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
    library.handlers, library.propagate = [_Retries()], False
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.handlers, library.propagate = handlers, propagate
        library.setLevel(level)


class _Retries(logging.Handler):
    """Passes on what is said of connections that broke."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in _RETRYING:
            logger.warning("%s", short_message(record.getMessage()))


def _no_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return factory(*args, **{**options, "disable": True})
