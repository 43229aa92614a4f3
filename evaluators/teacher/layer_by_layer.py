"""Run a teacher that is larger than memory: load each layer once, for all blocks of a text.

The model class's own decoder runs once for every layer and batch, but only one of its layers computes. The
layers before it return the output of the layer below, stored in the run before; the layers after it
return its output unchanged. The decoder's own code does everything around the layers (masks, positions, other
embeddings), so this module needs to know nothing about it.

Memory holds the parameters of one layer, those outside the layers, and one batch's activations. The states
between two layers lie in a memory-mapped file, which the system can write out to disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.huggingface.library_output import short_message
from evaluators.teacher.on_disk import TeacherOnDisk, teacher_on_disk
from space.axes.axis_map import AxisMap, layer_modules
from space.input_error import InputError


@dataclass(frozen=True)
class TeacherFiles:
    """Where the files of a teacher lie, and how its layers are computed one by one."""

    directory: Path
    """Of config and weights."""
    axis_map: AxisMap
    device: torch.device
    """Where layers are computed."""
    dtype: torch.dtype
    """Of the weights in memory."""
    scratch: Path | None = None
    """A folder with room for the states between two layers; by default the system's temporary folder."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    @contextmanager
    def opened(self) -> Iterator[LayersInTurn]:
        """Within the context the files are open, and what lies outside the layers is loaded.

        Raises:
            InputError: layers cannot run one by one, or the files are not those of a teacher.
        """
        if len(self.axis_map.stacks) > 1:
            raise _not_layer_by_layer(f"layers lie in {len(self.axis_map.stacks)} lists")
        with (
            teacher_on_disk(self.directory, self.device, self.dtype, self.trust_remote_code) as teacher,
            TemporaryDirectory(dir=self.scratch) as folder,
        ):
            layers = LayersInTurn(teacher, self.axis_map, Path(folder))
            teacher.fetch(layers.outside)
            with layers.one_computes():
                yield layers


class LayersInTurn:
    """A teacher of which at most one layer is in memory and computes."""

    def __init__(self, teacher: TeacherOnDisk, axis_map: AxisMap, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.layers = layer_modules(teacher.model, axis_map)
        self._prefixes = [f"{axis_map.stacks[0]}{number}" for number in range(len(self.layers))]
        self._active = _ActiveLayer()

    @property
    def model(self) -> PreTrainedModel:
        """The model, without most of its weights."""
        return self.teacher.model

    def within(self, layer: int) -> Callable[[str], bool]:
        """Return whether a name belongs to a layer."""
        return partial(_within, self._prefixes[layer])

    def outside(self, name: str) -> bool:
        """Whether a name belongs to none of the layers."""
        return not any(_within(prefix, name) for prefix in self._prefixes)

    @contextmanager
    def one_computes(self) -> Iterator[None]:
        """Within the context, only the layer of ``in_turn`` computes."""
        try:
            for number, layer in enumerate(self.layers):
                vars(layer)["forward"] = partial(self._forward, number, layer.forward)
            yield
        finally:
            for layer in self.layers:
                vars(layer).pop("forward", None)

    def _forward(self, number: int, own: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        active = self._active
        if number == active.number_computing:
            _refuse_sharing((*arguments, *keywords.values()))
            active.output = own(*arguments, **keywords)
            states = active.output if isinstance(active.output, Tensor) else active.output[0]
            given = (value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor))
            active.given = next((value for value in given if value.shape == states.shape), None)
        return active.output

    def in_turn(self) -> Iterator[int]:
        """Load one layer after the other; the number that is yielded computes until the next."""
        for number, layer in enumerate(self.layers):
            self.teacher.fetch(self.within(number))
            self._active.number_computing = number
            yield number
            self.teacher.drop(layer)
        self._active.number_computing = None

    def places(self) -> Iterator[Callable[[str], bool]]:
        """Load one layer after the other, and yield what belongs to each; then what belongs to none."""
        for number in self.in_turn():
            yield self.within(number)
        yield self.outside

    def pass_on(
        self, batch: int, tokens: Tensor, states: StoredStates, read: Callable[[Tensor], Any] | None = None
    ) -> Passed:
        """Run a batch through the place of ``places``, from the states that were stored before it.

        Args:
            batch: its number.
            tokens: (B, T) token ids.
            states: what the layer below returned, and now this one.
            read: see ``run``.

        Raises:
            InputError: the layers share more than the stream, or the states do not fit on the disk.
        """
        number = self._active.number_computing
        before = None if number == 0 else states.read(batch, self.teacher.device)
        passed = self.run(tokens, before, read)
        if number is not None:
            states.write(batch, len(tokens), passed.output)
        return passed

    def run(self, tokens: Tensor, before: Any, read: Callable[[Tensor], Any] | None = None) -> Passed:
        """Run the decoder over (B, T) token ids, from what the layer below the one that computes returned.

        Args:
            tokens: token ids.
            before: the output of the layer below, or of the last layer if none computes; None for the first.
            read: runs the model on tokens on its device; ``final_states`` by default.

        Raises:
            InputError: the layers share more than the stream.
        """
        self._active.output = before
        tokens = tokens.to(self.teacher.device, torch.long)
        try:
            final = (read or partial(final_states, self.model))(tokens)
        except (InputError, torch.OutOfMemoryError):
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # A class whose layers depend on the side effects of others may raise anything.
            raise _not_layer_by_layer(
                f"run one by one, layers of this class fail ({short_message(error)})"
            ) from error
        return Passed(self._active.given, self._active.output, final)

    def states(self, name: str, blocks: int) -> StoredStates:
        """Return a place for the output of one layer for every block, in a file of this name."""
        return StoredStates(self.folder / name, blocks)

    def final(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield for each (B, T) batch its final states (B, T, D), after all layers were loaded once."""
        states = self.states("states", sum(map(len, batches)))
        for number in self.in_turn():
            for batch, tokens in enumerate(batches):
                before = states.read(batch, self.teacher.device) if number else None
                states.write(batch, len(tokens), self.run(tokens, before).output)
        for batch, tokens in enumerate(batches):
            yield self.run(tokens, states.read(batch, self.teacher.device)).final


@dataclass(frozen=True)
class Passed:
    """What one run of the decoder gave."""

    given: Tensor | None
    """(B, T, D) the states that the computing layer read; meaningless if none computed."""
    output: Any
    """What the computing layer returned."""
    final: Any
    """What the whole run returned: the final states if the last layer or none computed."""


@dataclass
class _ActiveLayer:
    """Which layer computes, what it read, and what all other layers return."""

    number_computing: int | None = None
    given: Tensor | None = None
    output: Any = None


def _within(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


class StoredStates:
    """The output of one layer for every block, batch after batch in a memory-mapped file."""

    def __init__(self, path: Path, blocks: int) -> None:
        self._path, self._blocks = path, blocks
        self._all: Tensor | None = None
        self._slots: dict[int, tuple[int, torch.Size]] = {}
        self._other_outputs: tuple[Tensor | None, ...] | None = None

    def write(self, batch: int, blocks: int, output: Any) -> None:
        """Store the output for a batch of ``blocks`` blocks; batches first arrive in their order."""
        states = output if isinstance(output, Tensor) else output[0]
        self._other_outputs = None if isinstance(output, Tensor) else tuple(map(_on_meta, output[1:]))
        if self._all is None:
            self._all = self._map_file(states.numel() // blocks * self._blocks, states.dtype)
        start = self._slots[batch][0] if batch in self._slots else self._end()
        self._slots[batch] = start, states.shape
        self._all[start : start + states.numel()].copy_(states.flatten())

    def _end(self) -> int:
        return max((start + shape.numel() for start, shape in self._slots.values()), default=0)

    def read(self, batch: int, device: torch.device) -> Any:
        """Return the stored output of a batch; tensors other than the states are on the meta device."""
        assert self._all is not None, "nothing was written"
        start, shape = self._slots[batch]
        states = self._all[start : start + shape.numel()].view(shape).to(device)
        return states if self._other_outputs is None else (states, *self._other_outputs)

    def _map_file(self, size: int, dtype: torch.dtype) -> Tensor:
        folder = self._path.parent
        needed, free = size * dtype.itemsize, shutil.disk_usage(folder).free
        if needed > 0.95 * free:
            raise InputError(
                "The states between two layers have to fit on the disk to run a teacher layer by layer",
                f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in {folder.parent}",
                "Make space there, name another folder with TMPDIR, or take fewer calibration blocks",
            )
        return torch.from_file(str(self._path), shared=True, size=size, dtype=dtype)


def _refuse_sharing(given: Sequence[Any]) -> None:
    """Refuse layers that share a mutable object, or that pass one another more than the stream."""
    parts = [part for value in given for part in (value if isinstance(value, tuple) else (value,))]
    if any(isinstance(part, dict | list) for part in parts):
        raise _not_layer_by_layer("layers share a dictionary or a list")
    if any(isinstance(part, Tensor) and part.is_meta for part in parts):
        raise _not_layer_by_layer("layers give one another more than the stream")


def _on_meta(value: Any) -> Tensor | None:
    """Return a meta tensor for an output other than the states; few decoders use those outputs."""
    return value.to("meta") if isinstance(value, Tensor) else None


def _not_layer_by_layer(what: str) -> InputError:
    return InputError(
        "A teacher that does not fit into memory is ranked layer by layer, from the stream alone",
        what,
        "Take a device on which the whole teacher fits, or another teacher",
    )
