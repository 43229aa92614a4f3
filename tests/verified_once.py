"""What trying a class finds is found once in a whole session: each takes seconds, and they are few.

The processes of a session share a folder, which the first of them makes and names to the others. Nothing
outlives the session, so whatever is wrong is found by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
from pathlib import Path

import torch
from transformers import PretrainedConfig

from space.verification import verification
from space.verification.verification import Verified

FOLDER = "SLIMSEARCH_TESTS_VERIFIED"
#: The function itself, for tests that change what lies below it.
verify_anew = verification.verify
_found: dict[str, Verified] = {}


def install(folder: Path) -> None:
    """From now on ``verify`` looks in the folder first."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    verification.verify = verify_once


def verify_once(config: PretrainedConfig) -> Verified:
    """Return what ``verify`` returns, from memory or from the folder if it was found before."""
    text = f"{type(config).__qualname__} {torch.get_default_dtype()} {config.to_json_string(use_diff=False)}"
    key = hashlib.sha256(text.encode()).hexdigest()
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
