"""Pass a cache of keys, values and states from one forward pass to the next, by the names that a class has.

It is ``past_key_values``, without attention ``cache_params``, and from transformers 5.24 on always ``cache``.
"""

from __future__ import annotations

import inspect
from typing import Any

_NAMES = ("cache", "past_key_values", "cache_params")


def cache_argument(model: Any) -> str:
    """Return the name of the argument by which a model takes a cache."""
    taken = inspect.signature(getattr(model, "forward", model)).parameters
    return next((name for name in _NAMES if name in taken), "past_key_values")


def cache_of(output: Any) -> Any:
    """Return the cache that a forward pass with ``use_cache=True`` left; other names than its own warn."""
    return next(vars(output)[name] for name in _NAMES if name in vars(output))
