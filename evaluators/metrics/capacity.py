"""The memory that a run may use: of the device, and of the host with the limit of its control group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evaluators.teacher.host_memory import host_bytes


@dataclass(frozen=True)
class Capacity:
    """The bytes that a run may use; None where they cannot be found out."""

    device: int | None
    """Of an accelerator."""
    host: int | None
    shared: bool
    """Whether device and host are one, so that everything counts for the host."""
    told: bool = False
    """Whether the user named the device's memory, of a card that need not be here."""


def capacity_of(device: torch.device, told: int | None = None) -> Capacity:
    """Return what a device and this host have.

    Args:
        device: of the run.
        told: the device's bytes if the user named them.
    """
    host = host_bytes()
    if device.type != "cuda":
        return Capacity(None, host if told is None else min(told, host or told), shared=True)
    if told is not None:  # where the card is not here, its host is not either
        return Capacity(told, host if torch.cuda.is_available() else None, shared=False, told=True)
    return Capacity(int(torch.cuda.mem_get_info(device)[1]), host, shared=False)
