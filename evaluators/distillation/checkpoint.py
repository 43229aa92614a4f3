"""Checkpoints in safetensors: weights, optimiser state, position and random state.

The position also determines the data order and the learning rate, since both are functions of the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from evaluators.distillation.schedule import RECENT, Rollback

Curve = list[tuple[int, float]]
_NO_TENSORS: Mapping[str, Tensor] = {}


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Position:
    """The progress of a training."""

    step: int
    """Steps taken."""
    curve: Curve
    """(tokens, validation loss) of each validation so far."""
    seconds: float
    """Training time so far."""
    first: float | None = None
    """Loss at the first step."""
    recent: deque[float] = field(default_factory=_recent)
    """Losses of the last ``RECENT`` steps."""
    setback: Rollback | None = None
    """The rollback after a divergence, if there was one."""


def save_checkpoint(
    path: Path,
    key: str,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] = _NO_TENSORS,
    *,
    write: bool = True,
) -> None:
    """Write a checkpoint atomically: the previous one stays until the new one is complete.

    Args:
        path: the file.
        key: identifies the training.
        position: its progress.
        model: the module whose parameters are trained, the student's included.
        optimizer: its optimiser.
        extra: other tensors that change from step to step.
        write: whether this process writes; with sharded parameters, all processes have to call this.

    Raises:
        OSError: the disk is full.
    """
    tensors = {f"model.{name}": value for name, value in whole_parameters(model, keep=write)}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            whole = _whole(value)
            if write:
                tensors[f"optimizer.{number}.{name}"] = whole.cpu()
    if not write:
        return
    tensors |= {f"also.{name}": value.detach().cpu() for name, value in extra.items()}
    tensors |= {f"random.{name}": value for name, value in _random_state().items()}
    metadata = {"key": key, **asdict(position), "recent": list(position.recent)}
    write_tensors(path, tensors, metadata)


def whole_parameters(model: nn.Module, *, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter by name, unsharded, on the host; tied parameters under their first name alone.

    Args:
        model: if it is sharded, all processes have to exhaust the iterator.
        keep: whether to yield anything; False only takes part in gathering the shards.
    """
    for name, parameter in model.named_parameters():
        whole = _whole(parameter.detach())
        if keep:
            yield name, whole.contiguous().cpu()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata into a file atomically.

    Raises:
        OSError: the disk is full; an existing file is unchanged.
    """
    folder = temporary_folder(path)
    remove_temporary(path)
    folder.mkdir(parents=True)
    new = folder / path.name
    try:
        save_file(tensors, new, metadata={"slimsearch": json.dumps(metadata)})
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    except SafetensorError as error:
        raise _os_error(error) from error
    finally:
        remove_temporary(path)


def temporary_folder(path: Path) -> Path:
    """Return the folder in which a file is written first; safetensors adds temporary files of its own."""
    return path.with_suffix(".unfinished")


def remove_temporary(path: Path) -> None:
    """Remove the temporary files that a killed process left behind."""
    shutil.rmtree(temporary_folder(path), ignore_errors=True)


def _os_error(error: SafetensorError) -> Exception:
    """Return the OSError behind a failed write, which safetensors names only in its message."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a file from ``write_tensors``; None if the file is missing or corrupt."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
            return metadata if isinstance(metadata, dict) and "key" in metadata else None
    except (OSError, SafetensorError):
        return None


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose names begin with ``prefix`` to the host, and strip it from the names."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def load_checkpoint(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] = _NO_TENSORS,
) -> Position | None:
    """Restore a checkpoint; without one for this training, return None and change nothing.

    Every process reads the file and keeps its own shard. Arguments as in ``save_checkpoint``.
    """
    metadata = read_metadata(path)
    if metadata is None or metadata.pop("key") != key:
        return None
    load_parameters(model, read_tensors(path, "model."))
    for name, tensor in read_tensors(path, "also.").items():
        extra[name].copy_(tensor)
    _load_optimizer(optimizer, read_tensors(path, "optimizer."))
    _set_random_state(read_tensors(path, "random."))
    return _position(metadata)


@torch.no_grad()
def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy unsharded tensors into the parameters of these names, sharding them where needed."""
    for name, parameter in model.named_parameters():
        parameter.copy_(_sharded(tensors[name], parameter))


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, kind = name.split(".", 1)
        value = tensor if kind == "step" else _sharded(tensor, parameters[int(number)])
        state.setdefault(int(number), {})[kind] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _position(metadata: dict[str, Any]) -> Position:
    curve = [(tokens, loss) for tokens, loss in metadata["curve"]]
    setback = metadata["setback"] and Rollback(**metadata["setback"])
    recent = _recent()
    recent.extend(metadata["recent"])
    return Position(**{**metadata, "curve": curve, "setback": setback, "recent": recent})


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor over the processes as ``like`` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
