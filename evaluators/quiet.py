"""Reading and loading without the libraries' own progress bars and warnings.

They write to the terminal past the console's live display; what a user should know, this project
says itself, through ``logging``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets.utils as datasets_bars
from transformers.utils import logging as transformers_bars

_LIBRARIES = ("transformers", "datasets", "huggingface_hub", "httpx2", "fsspec")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block the libraries print nothing but errors; after it they are as they were.

    The bars of ``snapshot_download`` are not covered: it is given its own (see ``downloads``).
    """
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logging.ERROR, logger.level))
    hook = transformers_bars.set_tqdm_hook(_no_bar)
    shown = not datasets_bars.are_progress_bars_disabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shown:
                datasets_bars.disable_progress_bars()
            yield
    finally:
        if shown:
            datasets_bars.enable_progress_bars()
        transformers_bars.set_tqdm_hook(hook)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return factory(*args, **{**options, "disable": True})
