"""One ranking pass over several processes: each listens to a share of the blocks, then all sums are joined.

What a pass gathers are sums in float64, so that it does not matter which process heard which block.
Every process joins the sums of all in the same order, so that all end with the same numbers.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from evaluators.importance.activations import Listener
from evaluators.importance.covariance import Covariance


def share(calibration: Tensor, accelerator: Accelerator | None) -> Tensor:
    """(n, T) this process's blocks of (N, T); there may be none."""
    if accelerator is None:
        return calibration
    return calibration[accelerator.process_index :: accelerator.num_processes]


def gathered(listener: Listener, accelerator: Accelerator | None) -> Listener:
    """The listener, with what those of all processes have heard.

    Args:
        listener: of this process; it is changed.
        accelerator: of the processes, each of which has to call this; None for this process alone.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return listener
    mine = {name: getattr(listener, name) for name in Listener.SUMS}
    total, *others = map(_read, gather_object([_written(mine)]))
    for other in others:
        total = joined(total, other)
    for name, sums in total.items():
        setattr(listener, name, sums)
    return listener


def joined(one: Any, other: Any) -> Any:
    """Two processes' sums as those of one that heard the blocks of both.

    Args:
        one: a sum that has ``merge``, or a list or dictionary of such; it may be changed. A dictionary need
            not have all keys: a process to which no token of an expert came has no sum of it.
        other: of the same kind.
    """
    if isinstance(one, dict):
        both = {key: joined(one[key], other[key]) for key in one.keys() & other.keys()}
        return one | other | both
    if isinstance(one, list):
        return [joined(*pair) for pair in zip(one, other, strict=True)]
    if isinstance(one, Covariance):
        if other.total is not None:
            one.total = other.total if one.total is None else one.total + other.total
            one.tokens += other.tokens
    else:
        one.merge(other)
    return one


def _written(sums: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    torch.save(sums, buffer)
    return buffer.getvalue()


def _read(written: bytes) -> dict[str, Any]:
    """On the host, whatever device another process has them on; only objects of our own making are read."""
    sums: dict[str, Any] = torch.load(BytesIO(written), map_location="cpu", weights_only=False)
    return sums
