"""Rank a teacher that is larger than memory: load each layer once, for all calibration blocks.

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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from evaluators.huggingface.library_output import short_message
from evaluators.importance.activations import ActivationListener, all_reduced, process_share
from evaluators.importance.aggregation import Aggregation
from evaluators.importance.collected import ranking_of
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.moments import reader_weighting
from evaluators.importance.rank import batches
from evaluators.teacher.on_disk import TeacherOnDisk, teacher_on_disk
from space.axes.axis_map import AxisMap, layer_modules, wildcard_name
from space.cutting.basis import BasisName
from space.cutting.ranking import Ranking
from space.input_error import InputError


@torch.no_grad()
def rank_from_disk(
    directory: Path,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
    method: Method | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Path | None = None,
    trust_remote_code: bool = False,
    accelerator: Accelerator | None = None,
) -> Ranking:
    """Return the ranking that ``rank`` gives, with only one layer of the teacher in memory at a time.

    Every weight is loaded once; some bases load the matrices that read the residual stream a second time.

    Args:
        directory: the teacher's.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: called with the number of blocks after each batch has passed the last layer.
        method: has to score by activations and block influence, the default; any basis is possible.
        device: where layers are computed.
        dtype: of the weights in memory.
        scratch: a folder with room for the states of all blocks; by default the system's temporary folder.
        trust_remote_code: whether Python code that comes with the model may run.
        accelerator: as for ``rank``.

    Raises:
        InputError: the method needs the whole teacher, its layers share more than the residual stream, or the
            states do not fit on the disk; and as for ``rank``.
    """
    method = method or Method()
    _refuse_method(method)
    _refuse_stacks(axis_map)
    with (
        teacher_on_disk(directory, device, dtype, trust_remote_code) as teacher,
        TemporaryDirectory(dir=scratch) as folder,
    ):
        listener = ActivationListener(teacher.model, axis_map, [Aggregation(method.batch, method.sequence)])
        blocks = process_share(calibration, accelerator)
        _collect_statistics(teacher, listener, batches(blocks), _States(Path(folder), len(blocks)), advance)
        listener = all_reduced(listener, accelerator)
        return ranking_of(listener, fingerprint, method, partial(_weighting, teacher, axis_map, method.basis))


def _collect_statistics(
    teacher: TeacherOnDisk,
    listener: ActivationListener,
    batches: Sequence[Tensor],
    states: _States,
    advance: Callable[[int], None],
) -> None:
    """Pass all batches through one layer after the other, then through the modules after the last."""
    layers = layer_modules(teacher.model, listener.axis_map)
    prefixes = [f"{listener.axis_map.stacks[0]}{number}" for number in range(len(layers))]
    teacher.fetch(lambda name: not any(_within(prefix, name) for prefix in prefixes))
    with _one_layer_computes(layers) as active:
        for number, layer in enumerate(layers):
            within = partial(_within, prefixes[number])
            teacher.fetch(within)
            active.number_computing = number
            with listener.on(within):
                for batch, tokens in enumerate(batches):
                    active.output = states.read(batch, teacher.device) if number else None
                    _run_decoder(listener, tokens.to(teacher.device, torch.long))
                    states.write(batch, len(tokens), active.output)
            teacher.drop(layer)
        active.number_computing = None
        with listener.on(lambda name: not any(_within(prefix, name) for prefix in prefixes)):
            for batch, tokens in enumerate(batches):
                active.output = states.read(batch, teacher.device)
                _run_decoder(listener, tokens.to(teacher.device, torch.long))
                advance(len(tokens))


def _run_decoder(listener: ActivationListener, tokens: Tensor) -> None:
    """Run the decoder. A class whose layers depend on the side effects of others may raise anything."""
    try:
        listener.read(tokens)
    except (InputError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _not_layer_by_layer(
            f"run one by one, layers of this class fail ({short_message(error)})"
        ) from error


def _within(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@dataclass
class _ActiveLayer:
    """Which layer computes, and what all other layers return."""

    number_computing: int | None = None
    output: Any = None


@contextmanager
def _one_layer_computes(layers: Sequence[nn.Module]) -> Iterator[_ActiveLayer]:
    """Within the context, only one layer of a decoder computes."""
    active = _ActiveLayer()

    def forward(number: int, own: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if number == active.number_computing:
            _refuse_sharing((*arguments, *keywords.values()))
            active.output = own(*arguments, **keywords)
        return active.output

    try:
        for number, layer in enumerate(layers):
            vars(layer)["forward"] = partial(forward, number, layer.forward)
        yield active
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


class _States:
    """The output of one layer for every block, batch after batch in a memory-mapped file."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self._folder, self._blocks = folder, blocks
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
        needed, free = size * dtype.itemsize, shutil.disk_usage(self._folder).free
        if needed > 0.95 * free:
            raise InputError(
                "The states between two layers have to fit on the disk to rank a teacher layer by layer",
                f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in {self._folder.parent}",
                "Make space there, name another folder with TMPDIR, or take fewer calibration blocks",
            )
        return torch.from_file(str(self._folder / "states"), shared=True, size=size, dtype=dtype)


def _weighting(teacher: TeacherOnDisk, axis_map: AxisMap, basis: BasisName, covariance: Tensor) -> Tensor:
    """Return ``reader_weighting`` of the whole teacher, (D, D), with one layer in memory at a time."""
    total = torch.zeros_like(covariance)
    if basis is BasisName.PRINCIPAL:  # which does not use it
        return total
    stream = axis_map.stream
    assert stream is not None, "only a stream that can be turned has a basis"
    outer = tuple(tensor for tensor in axis_map.tensors if tensor.layer is None)
    norms = tuple(tensor for tensor in outer if wildcard_name(tensor.name) in stream.readers)
    total += reader_weighting(teacher.model, replace(axis_map, tensors=outer), stream, covariance)
    for number, layer in enumerate(layer_modules(teacher.model, axis_map)):
        teacher.fetch(partial(_within, f"{axis_map.stacks[0]}{number}"))
        inner = tuple(tensor for tensor in axis_map.tensors if tensor.layer == number)
        total += reader_weighting(
            teacher.model, replace(axis_map, tensors=(*inner, *norms)), stream, covariance
        )
        teacher.drop(layer)
    return total


def _refuse_method(method: Method) -> None:
    if (method.width, method.depth, method.greedy, method.rounds) != (
        Width.ACTIVATIONS,
        Depth.INFLUENCE,
        False,
        1,
    ):
        raise InputError(
            "A teacher that does not fit into memory is ranked by activations and block influence, once",
            f"the method asked for is: {method.words}",
            "Take the default method, or a device on which the whole teacher fits",
        )


def _refuse_stacks(axis_map: AxisMap) -> None:
    if len(axis_map.stacks) > 1:
        raise _not_layer_by_layer(f"layers lie in {len(axis_map.stacks)} lists")


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
