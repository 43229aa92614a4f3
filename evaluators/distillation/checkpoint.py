"""A training in the middle, on disk: weights, optimiser, position and random state, in safetensors.

The position also gives the data order and the learning rate, since both are functions of the step.
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
_NOTHING: Mapping[str, Tensor] = {}


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Position:
    """How far a training has come."""

    step: int
    """Steps taken."""
    curve: Curve
    """(tokens, validation loss) so far."""
    seconds: float
    """Spent so far."""
    first: float | None = None
    """Loss of the first step."""
    recent: deque[float] = field(default_factory=_recent)
    """Losses of the last steps."""
    setback: Rollback | None = None
    """The step back that was taken."""


def save_checkpoint(
    path: Path,
    key: str,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    also: Mapping[str, Tensor] = _NOTHING,
    *,
    write: bool = True,
) -> None:
    """Write a checkpoint; the one before stays until the new one is whole.

    Args:
        path: of the file.
        key: names the training that it belongs to.
        position: how far it has come.
        model: whose parameters are trained, the student's among them.
        optimizer: its AdamW.
        also: other tensors that change from step to step.
        write: whether this process writes; where parameters are sharded, all have to come here.

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
    tensors |= {f"also.{name}": value.detach().cpu() for name, value in also.items()}
    tensors |= {f"random.{name}": value for name, value in _random_state().items()}
    about = {"key": key, **asdict(position), "recent": list(position.recent)}
    write_tensors(path, tensors, about)


def whole_parameters(model: nn.Module, *, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every parameter on the host, unsharded, by name; of tied ones the first name alone.

    Args:
        model: all processes have to ask for all of a sharded one.
        keep: without it nothing is handed out.
    """
    for name, parameter in model.named_parameters():
        whole = _whole(parameter.detach())
        if keep:
            yield name, whole.contiguous().cpu()


def write_tensors(path: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and what they are into a file that is there whole or not at all.

    Raises:
        OSError: the disk is full; a file that was there before is as it was.
    """
    folder = temporary_folder(path)
    remove_temporary(path)
    folder.mkdir(parents=True)
    new = folder / path.name
    try:
        save_file(tensors, new, metadata={"slimsearch": json.dumps(about)})
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    except SafetensorError as error:
        raise _os_error(error) from error
    finally:
        remove_temporary(path)


def temporary_folder(path: Path) -> Path:
    """The folder in which a file is written until it is whole: safetensors has temporary files of its own."""
    return path.with_suffix(".unfinished")


def remove_temporary(path: Path) -> None:
    """Remove what a killed process left of a file."""
    shutil.rmtree(temporary_folder(path), ignore_errors=True)


def _os_error(error: SafetensorError) -> Exception:
    """The system's error that a failure to write stands for; safetensors names it in its message alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What a file of ``write_tensors`` says of itself; None if it is none, or not whole."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
            return about if isinstance(about, dict) and "key" in about else None
    except (OSError, SafetensorError):
        return None


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Those tensors on the host whose names begin with ``prefix``, without it."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def load_checkpoint(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    also: Mapping[str, Tensor] = _NOTHING,
) -> Position | None:
    """Go back to a checkpoint; None if there is none for this training, and nothing is changed then.

    Of many processes each reads the file, and keeps its own shard.
    """
    about = read_metadata(path)
    if about is None or about.pop("key") != key:
        return None
    load_parameters(model, read_tensors(path, "model."))
    for name, tensor in read_tensors(path, "also.").items():
        also[name].copy_(tensor)
    _load_optimizer(optimizer, read_tensors(path, "optimizer."))
    _set_random_state(read_tensors(path, "random."))
    return _position(about)


@torch.no_grad()
def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the parameters of these names, sharded as they are."""
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


def _position(about: dict[str, Any]) -> Position:
    curve = [(tokens, loss) for tokens, loss in about["curve"]]
    setback = about["setback"] and Rollback(**about["setback"])
    recent = _recent()
    recent.extend(about["recent"])
    return Position(**{**about, "curve": curve, "setback": setback, "recent": recent})


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, as another one is spread over processes."""
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
