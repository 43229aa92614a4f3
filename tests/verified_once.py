"""What trying a class finds is found once in a whole session: each takes seconds, and they are few.

The processes of a session share a folder, which the first of them makes and names to the others. Nothing
outlives the session, so whatever is wrong is found by the next.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

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
#: The function itself, for tests that change what lies below it.
verify_anew = verification.verify
discover_anew = discover
_found: dict[str, Verified] = {}
_discovered: dict[object, DraftMap] = {}


def install(folder: Path) -> None:
    """From now on ``verify`` looks in the folder first."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    verification.verify = verify_once
    verification.discover = discover_once  # type: ignore[attr-defined]


def _key(config: PretrainedConfig) -> str:
    """The same for all sizes of a class with the same flags: what is tried is a tiny copy."""
    try:
        tried = tiny_config(config)
    except BUILD_ERRORS:
        tried = config
    decoder = why_not_a_decoder(config) is None
    flags = tried.to_json_string(use_diff=False)
    text = f"{type(config).__qualname__} {decoder} {torch.get_default_dtype()} {flags}"
    return hashlib.sha256(text.encode()).hexdigest()


def discover_once(
    config: PretrainedConfig,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: HiddenTie | None = None,
) -> DraftMap:
    """Return what ``discover`` returns; a class with many layers is built a dozen times there."""
    flags = config.to_json_string(use_diff=False)
    key = (type(config), torch.get_default_dtype(), flags, tuple((choices or {}).items()), attention, tie)
    if key not in _discovered:
        _discovered[key] = discover_anew(config, choices, attention, tie)
    found = _discovered[key]
    return replace(found, axis_map=replace(found.axis_map, config=copy.deepcopy(found.axis_map.config)))


def verify_once(config: PretrainedConfig) -> Verified:
    """Return what ``verify`` returns, from memory or from the folder if it was found before."""
    key = _key(config)
    if key not in _found:
        path = Path(os.environ[FOLDER]) / key
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at the same one
            if path.exists():
                _found[key] = pickle.loads(path.read_bytes())
            else:
                _found[key] = verify_anew(config)
                path.write_bytes(pickle.dumps(_found[key]))
    return _found[key]
