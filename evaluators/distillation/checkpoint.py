"""A training in the middle, on disk: weights, optimiser and position, in safetensors.

The position also gives the data order and the learning rate, since both are functions of the step.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

Curve = list[tuple[int, float]]


@dataclass
class Position:
    """How far a training has come."""

    step: int
    curve: Curve
    """(tokens, validation loss) so far."""
    seconds: float
    """Spent so far."""


def save_checkpoint(
    path: Path, key: str, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; the one before stays until the new one is whole.

    Args:
        path: of the file.
        key: names the training that it belongs to.
        position: how far it has come.
        model: the student.
        optimizer: its AdamW.

    Raises:
        OSError: the disk is full.
    """
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    about = {"key": key, **vars(position)}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, new, metadata={"slimsearch": json.dumps(about)})
    except SafetensorError as error:
        new.unlink(missing_ok=True)
        raise _os_error(error) from error
    os.replace(new, path)


def _os_error(error: SafetensorError) -> Exception:
    """The system's error that a failure to write stands for; safetensors names it in its message alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def load_checkpoint(
    path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Position | None:
    """Go back to a checkpoint; None if there is none for this training, and nothing is changed then."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
            if about.pop("key", None) != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, kind = name.split(".", 2)
            state.setdefault(int(number), {})[kind] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    about["curve"] = [(tokens, loss) for tokens, loss in about["curve"]]
    return Position(**about)
