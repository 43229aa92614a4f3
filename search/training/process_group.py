"""The processes of a distributed run, which train each student together; the main process leads the run.

``accelerate launch`` and ``torchrun`` start the same command once per GPU. The main process executes the run;
the others wait for its commands and take part only in trainings. Commands are sent by gloo on the host, so
waiting for one does not occupy the GPUs and may take days.

An exception that a training raises in one process must be raised in all, or the others would wait forever. So
at its end all processes exchange their failures. If they cannot, the run ends; the same command resumes it.
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
from search.terminal.command import LostProcessError, is_multi_process, is_set, is_sharded
from space.input_error import InputError

#: Exceptions that fail a candidate; any other ends the run.
FAILURES = (RuntimeError, ValueError, MemoryError)
#: How long a failed process waits for the others to fail too.
_FAILURE_TIMEOUT = timedelta(seconds=30)
#: Timeout of collectives in training, where a process may wait for another that writes a checkpoint.
_TRAINING_TIMEOUT = timedelta(hours=2)
_NO_TIMEOUT = timedelta(days=365)
_GONE = "another process of this run is gone"


class RunProcesses:
    """The processes of a run, from the point of view of this one.

    Args:
        group: gloo group of all processes, for commands; None: this process is the only one.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self.out_of_step = False
        """Whether this process is in a training, left one before the others, or lost them."""

    @property
    def is_only(self) -> bool:
        """Whether this process is the only one."""
        return self._group is None

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self._group is None or torch.distributed.get_rank() == 0

    def send_command(self, command: object) -> None:
        """Send a command to the other processes, if there are any.

        Raises:
            LostProcessError: one of them is gone.
        """
        if self._group is not None:
            self._broadcast(command)

    def commands(self) -> Iterator[object]:
        """Yield the commands of the main process until it releases this one.

        Raises:
            LostProcessError: the main process is gone.
        """
        while (command := self._broadcast(None)) is not None:
            yield command
        self._wait_before_exit()

    def release_others(self) -> None:
        """Tell the other processes that the run is over.

        Raises:
            LostProcessError: one of them is gone.
        """
        self.send_command(None)
        self._wait_before_exit()

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Run the context in all processes; at its end, a failure in one is raised in all.

        Raises:
            RuntimeError: another process failed, and all reached the end of the context.
            LostProcessError: only one process failed while others wait in the context, or one is gone.
        """
        if self._group is None:
            yield
            return
        failure, self.out_of_step = None, True
        try:
            yield
        except FAILURES as error:
            failure = error
        failures = self._exchange_failures(failure)
        self.out_of_step = False
        if failure is not None:
            raise failure
        if failures:
            raise RuntimeError("; ".join(failures))

    def check_device(self, device: str) -> None:
        """Check that every process can use the device that the run names.

        Raises:
            InputError: the run names one device for all, this host has too few GPUs, or FSDP is not FSDP2.
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
        if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
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

    def _wait_before_exit(self) -> None:
        """Wait until all processes know that the run is over, before this one ends."""
        with suppress(RuntimeError):
            torch.distributed.monitored_barrier(self._group, timeout=_FAILURE_TIMEOUT)

    def _exchange_failures(self, failure: Exception | None) -> list[str]:
        """Wait for all processes and return their failures, this one's included."""
        failures: list[str | None] = [None] * torch.distributed.get_world_size(self._group)
        mine = None if failure is None else short_message(failure)
        wait, began = _NO_TIMEOUT if failure is None else _FAILURE_TIMEOUT, time.monotonic()
        try:
            torch.distributed.monitored_barrier(self._group, timeout=wait)
            torch.distributed.all_gather_object(failures, mine, group=self._group)
        except RuntimeError as error:
            if time.monotonic() - began < wait.total_seconds():
                raise LostProcessError(f"{_GONE}: {mine or short_message(error)}") from failure
            why = f"one process failed while the others trained on: {mine}"
            raise LostProcessError(why, failed=True) from failure
        return [f"process {number}: {text}" for number, text in enumerate(failures) if text is not None]


@cache
def run_processes() -> RunProcesses:
    """Return the processes of this run; the first call waits until all have started."""
    if not is_multi_process():
        return RunProcesses()
    # Otherwise transformers loads the teacher's weights only in the first process of a host.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    cpu = is_set("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    PartialState(cpu=cpu, timeout=_TRAINING_TIMEOUT)
    return RunProcesses(torch.distributed.new_group(backend="gloo", timeout=_NO_TIMEOUT))
