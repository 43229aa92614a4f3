"""What trying a class finds is found once in a whole session: each takes seconds, and they are few.

So is the map of each teacher: it takes a model of its size on the meta device for every axis. The processes
of a session share a folder, which the first of them makes and names to the others. Nothing outlives the
session, so whatever is wrong is found by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PretrainedConfig

from space.axes.axis_map import BUILD_ERRORS
from space.discovery.discovery import Choices, DraftMap, discover
from space.discovery.families import why_not_a_decoder
from space.discovery.sizing import HiddenTie
from space.discovery.tiny import tiny_config
from space.verification import verification
from space.verification.verification import Verified

FOLDER = "SLIMSEARCH_TESTS_VERIFIED"
#: The functions themselves, for tests that change what lies below them.
verify_anew, discover_anew = verification.verify, discover
_Found = TypeVar("_Found")
_found: dict[str, bytes] = {}


def install(folder: Path) -> None:
    """From now on ``verify``, and ``discover`` as it calls it, look in the folder first."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    verification.verify = verify_once
    vars(verification)["discover"] = discover_once  # under the name that it is imported by


def verify_once(config: PretrainedConfig) -> Verified:
    """Return what ``verify`` returns, from memory or from the folder if it was found before."""
    decoder = why_not_a_decoder(config) is None
    return _once(f"verify {decoder}", _tried(config), lambda: verify_anew(config))


def _tried(config: PretrainedConfig) -> PretrainedConfig:
    """The tiny copy that is tried: the same for all sizes of a class with the same flags."""
    try:
        return tiny_config(config)
    except BUILD_ERRORS:
        return config


def discover_once(
    config: PretrainedConfig,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: HiddenTie | None = None,
) -> DraftMap:
    """Return what ``discover`` returns, from memory or from the folder if it was found before."""
    how = f"discover {sorted((choices or {}).items())} {sorted(attention)} {tie}"
    return _once(how, config, lambda: discover_anew(config, choices, attention, tie))


def _once(how: str, config: PretrainedConfig, find: Callable[[], _Found]) -> _Found:
    """Return a copy of one's own of what was found for the config."""
    kind = f"{how} {type(config).__qualname__} {torch.get_default_dtype()}"
    key = hashlib.sha256(f"{kind} {config.to_json_string(use_diff=False)}".encode()).hexdigest()
    if key not in _found:
        path = Path(os.environ[FOLDER]) / key
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at the same one
            if not path.exists():
                path.write_bytes(pickle.dumps(find()))
            _found[key] = path.read_bytes()
    found: _Found = pickle.loads(_found[key])
    return found
