"""Where the weights of a run lie: on the device, on the host, or on the disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What stays on the device between stages, and how students train; decided by the ledger of memory.

    The defaults are those of a device on which everything fits.
    """

    teacher_stays: bool = True
    """Whether the teacher stays on the device while students train from cached targets; else it lies on the
    host, and comes to the device for the stages that run it."""
    sorted_stay: bool = True
    """Whether the sorted weights that students are cut from stay on the device; else they are read from a
    memory-mapped file on the host."""
    layer_by_layer: bool = False
    """Whether the teacher is larger than device or host, so its layers are read from the disk in turn."""
    recompute: bool = False
    """Whether training recomputes activations in the backward pass from the first step on."""
    micro_batch: int | None = None
    """Blocks of the first micro-batch; None for the default of the device."""


#: Everything stays on the device, and students train as the device does by default.
STAYS = Placement()
