"""Several processes that train each student together, one of which leads the run.

``accelerate launch`` and ``torchrun`` start the same command once for each GPU. The main process does all
that a run does; the others wait for its commands and take part in trainings alone. Commands go by
gloo, through the host, so that waiting for one takes nothing from the GPUs and may take days.

What a training raises in one process it has to raise in all, or the others would wait for it forever. So all
agree at its end how it went; where that cannot be, the run ends, and goes on when it is started again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

import torch
import torch.distributed
from accelerate import PartialState
from torch.distributed import ProcessGroup

from evaluators.huggingface.library_output import short_message
from search.terminal.command import LostProcessError, is_multi_process
from space.input_error import InputError

#: What a candidate may fail with; anything else is the end of the run in any case.
FAILURES = (RuntimeError, ValueError, MemoryError)
#: A process that failed waits so long for the others to fail too.
_PATIENCE = timedelta(seconds=30)
#: In a training one process may wait for another that writes a checkpoint.
_TRAINING = timedelta(hours=2)
_FOR_EVER = timedelta(days=365)
_GONE = "another process of this run is gone"


class RunProcesses:
    """The processes of a run, as this one sees them.

    Args:
        group: of all, for commands; None: this process is alone.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self.out_of_step = False
        """Whether this process is in a training, left one without the others, or lost them."""

    @property
    def is_only(self) -> bool:
        """Whether there are no others."""
        return self._group is None

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self._group is None or torch.distributed.get_rank() == 0

    def send_command(self, command: object) -> None:
        """Tell the others what to do next; nothing happens where there are none.

        Raises:
            LostProcessError: one is gone.
        """
        if self._group is not None:
            self._broadcast(command)

    def commands(self) -> Iterator[object]:
        """What this process is told to do, until it is let go.

        Raises:
            LostProcessError: the main process is gone.
        """
        while (command := self._broadcast(None)) is not None:
            yield command
        self._part()

    def release_others(self) -> None:
        """Tell the others that the run is over.

        Raises:
            LostProcessError: one is gone.
        """
        self.send_command(None)
        self._part()

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """All processes come here; after the context they agree on how it went.

        Raises:
            RuntimeError: another process failed, at a place where that kept none from coming to the end.
            LostProcessError: one failed alone, or is gone.
        """
        if self._group is None:
            yield
            return
        failure, self.out_of_step = None, True
        try:
            yield
        except FAILURES as error:
            failure = error
        others = self._agree(failure)
        self.out_of_step = False
        if failure is not None:
            raise failure
        if others:
            raise RuntimeError("; ".join(others))

    def check_device(self, device: str) -> None:
        """See that every process can have the device that the run names.

        Raises:
            InputError: it names one device for all, this host has too few, or weights are sharded in a way
                that is not supported.
        """
        if self._group is None:
            return
        own = PartialState().device.type
        if device != own:
            raise InputError(
                "Of several processes each trains on a device of its own",
                f"--device {device} was given, and they are on {own}",
                "Leave --device out; CUDA_VISIBLE_DEVICES says which GPUs are used",
            )
        here, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if own == "cuda" and here > there:
            raise InputError(
                "Of several processes each trains on a GPU of its own",
                f"there are {here} processes and {there} GPUs",
                f"Start {there}",
            )
        if _says_yes("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
            raise InputError(
                "Weights are sharded by FSDP2",
                "accelerate is set to the first version of FSDP",
                "Give --fsdp_version 2 to accelerate launch",
            )

    def _broadcast(self, command: object) -> object:
        box = [command]
        try:
            torch.distributed.broadcast_object_list(box, src=0, group=self._group)
        except RuntimeError as error:
            self.out_of_step = True
            raise LostProcessError(f"{_GONE}: {short_message(error)}") from error
        return box[0]

    def _part(self) -> None:
        """Nobody ends before all know that they may."""
        with suppress(RuntimeError):
            torch.distributed.monitored_barrier(self._group, timeout=_PATIENCE)

    def _agree(self, failure: Exception | None) -> list[str]:
        """What others failed with, once all are here."""
        said: list[str | None] = [None] * torch.distributed.get_world_size(self._group)
        mine = None if failure is None else short_message(failure)
        wait, began = _FOR_EVER if failure is None else _PATIENCE, time.monotonic()
        try:
            torch.distributed.monitored_barrier(self._group, timeout=wait)
            torch.distributed.all_gather_object(said, mine, group=self._group)
        except RuntimeError as error:
            if time.monotonic() - began < wait.total_seconds():
                raise LostProcessError(f"{_GONE}: {mine or short_message(error)}") from failure
            why = f"one process failed while the others trained on: {mine}"
            raise LostProcessError(why, failed=True) from failure
        return [f"process {number}: {text}" for number, text in enumerate(said) if text is not None]


@cache
def run_processes() -> RunProcesses:
    """Those of this process; the first call waits until all are there."""
    if not is_multi_process():
        return RunProcesses()
    # Or transformers would load the teacher's weights in the first process of a host alone.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    cpu = _says_yes("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    PartialState(cpu=cpu, timeout=_TRAINING)
    return RunProcesses(torch.distributed.new_group(backend="gloo", timeout=_FOR_EVER))


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
