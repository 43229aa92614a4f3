"""Gather moments that may be larger than memory: of some layers at a time, and handed on as they are ready.

A teacher in memory is run once for each group of layers, up to the last of the group. Of one that is read
layer by layer from the disk, the moments of each layer are ready when all tokens have passed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.moments import MomentsListener
from evaluators.importance.precision import products
from evaluators.importance.rank import batches
from evaluators.teacher.layer_by_layer import TeacherFiles
from space.axes.axis_map import AxisMap, layer_modules
from space.cutting.moments import Moments


@dataclass(frozen=True)
class MomentsRequest:
    """Moments that are wanted, and who takes them."""

    fingerprint: str
    """Of teacher and calibration set."""
    take: Callable[[Moments], None]
    """Called with parts, each of some matrices or norms."""
    every: int = 1
    """Of so many batches of the calibration set one is heard."""

    def listener(
        self, model: PreTrainedModel, axis_map: AxisMap, calibration: Tensor, every: int = 1
    ) -> MomentsListener:
        """Return a listener to a pass over the calibration set (N, T).

        Args:
            model: the teacher.
            axis_map: the teacher's.
            calibration: the whole set.
            every: ``self.every`` if all batches pass; 1 if those that are not heard are left out.
        """
        return MomentsListener(model, axis_map, every, calibration.numel() // self.every)

    def take_all(self, listener: MomentsListener) -> None:
        """Hand on what was collected.

        Raises:
            InputError: a moment is not finite.
        """
        for part in listener.parts(self.fingerprint):
            self.take(part)


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose moments are gathered in one pass."""

    start: int
    stop: int
    """The first layer that does not belong to it; the last group has what lies outside the layers, too."""
    last: bool
    share: float
    """Of a pass through all layers."""

    def includes(self, layer: int | None) -> bool:
        """Whether the moments of a layer's tensors, or of those outside all layers, belong to it."""
        return self.last if layer is None else self.start <= layer < self.stop


def layer_groups(axis_map: AxisMap, layers: int | None = None) -> list[LayerGroup]:
    """Divide the layers of a teacher into groups.

    Args:
        axis_map: the teacher's.
        layers: of a group, at most; None: one group has all.
    """
    count, whole = axis_map.teacher.layers, len(axis_map.stacks) > 1
    starts = range(0, count, layers or count)
    stops = [min(start + starts.step, count) for start in starts]
    return [
        LayerGroup(start, stop, stop == count, 1.0 if whole else stop / count)
        for start, stop in zip(starts, stops, strict=True)
    ]


@torch.no_grad()
def gather_in_groups(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    wanted: MomentsRequest,
    groups: Sequence[LayerGroup],
    advance: Callable[[float], None] = lambda blocks: None,
    bfloat16: bool = False,
) -> None:
    """Gather moments in one pass for each group of layers.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids.
        wanted: what is heard and who takes it.
        groups: from ``layer_groups``.
        advance: called with blocks × the group's share of a pass after each batch.
        bfloat16: whether the passes multiply matrices in bfloat16.

    Raises:
        InputError: activations are not finite.
    """
    layer_of = {tensor.name: tensor.layer for tensor in axis_map.tensors}
    for group in groups:
        listener = wanted.listener(model, axis_map, calibration)
        end = None if group.share == 1.0 else layer_modules(model, axis_map)[group.stop - 1]
        included = partial(_in_group, group, layer_of)
        with listener.on(included), products(model, bfloat16):
            for batch in batches(calibration)[:: wanted.every]:
                with _ending_behind(end):
                    final_states(model, batch.to(model.device, torch.long))
                advance(len(batch) * group.share)
        wanted.take_all(listener)


def _in_group(group: LayerGroup, layer_of: dict[str, int | None], name: str) -> bool:
    return group.includes(layer_of[name])


class _EnoughError(Exception):
    """Ends a forward pass."""


@contextmanager
def _ending_behind(module: nn.Module | None) -> Iterator[None]:
    """Within the context, a forward pass ends behind a module, if there is one."""

    def end(*_: object) -> None:
        raise _EnoughError

    handle = None if module is None else module.register_forward_hook(end)
    try:
        yield
    except _EnoughError:
        pass
    finally:
        if handle is not None:
            handle.remove()


@torch.no_grad()
def gather_from_disk(
    files: TeacherFiles,
    calibration: Tensor,
    wanted: MomentsRequest,
    advance: Callable[[float], None] = lambda blocks: None,
    bfloat16: bool = False,
) -> None:
    """Gather moments with one layer of the teacher in memory at a time.

    Args:
        files: the teacher's.
        calibration: (N, T) token ids.
        wanted: what is heard and who takes it.
        advance: called with the number of blocks after each batch, in equal parts for each layer.
        bfloat16: whether the pass multiplies matrices in bfloat16.

    Raises:
        InputError: layers share more than the residual stream, the states do not fit on the disk, or
            activations are not finite.
    """
    chosen = batches(calibration)[:: wanted.every]
    with files.opened() as turn, products(turn.model, bfloat16):
        listener = wanted.listener(turn.model, files.axis_map, calibration)
        states, parts = turn.states("states", sum(map(len, chosen))), 1 / (len(turn.layers) + 1)
        for included in turn.places():
            with listener.on(included):
                for number, tokens in enumerate(chosen):
                    turn.pass_on(number, tokens, states)
                    advance(len(tokens) * parts)
            wanted.take_all(listener)
