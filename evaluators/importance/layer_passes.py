"""Run a teacher without some of its layers, through the model class's own forward.

The simple way runs the whole model, and removed layers return their input. The fast way reuses the states at
the layer boundaries of one full pass: the layers before a removed block do not run again, and the last
layer of the block returns the stored input of its first.

In some classes layers pass keys, values or other tensors to later layers beside the hidden states. A pass
that skips the first layers then gives other results or fails, so every pass has to be a full one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_cost import head_share
from space.axes.axis_map import AxisMap, layer_modules

Forward = Callable[..., Any]


@dataclass
class Boundaries:
    """The hidden states at the input and output of every layer in one forward pass."""

    places: dict[int, int | str] = field(default_factory=dict)
    """Which argument of each layer holds the states: a position or a keyword."""
    before: dict[int, Tensor] = field(default_factory=dict)
    """(B, T, D) states at the input of each layer."""
    outputs: dict[int, Tensor | tuple[Any, ...]] = field(default_factory=dict)
    """What each layer returned: the states, or a tuple that begins with them."""

    def record(
        self,
        layer: int,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        output: Tensor | tuple[Any, ...],
    ) -> None:
        """Record one call of a layer."""
        after = output if isinstance(output, Tensor) else output[0]
        given: list[tuple[int | str, Any]] = [*enumerate(arguments), *keywords.items()]
        self.places[layer], self.before[layer] = next(
            (place, value)
            for place, value in given
            if isinstance(value, Tensor) and value.shape == after.shape
        )
        self.outputs[layer] = output

    def clear(self) -> None:
        """Drop the recorded states."""
        self.before.clear()
        self.outputs.clear()

    @property
    def states(self) -> list[Tensor]:
        """L + 1 tensors (B, T, D): the input of each layer, and the output of the last."""
        last = self.outputs[len(self.before) - 1]
        return [self.before[n] for n in range(len(self.before))] + [
            last if isinstance(last, Tensor) else last[0]
        ]


@contextmanager
def recording_boundaries(layers: Sequence[nn.Module], boundaries: Boundaries) -> Iterator[None]:
    """Within the context, record every pass through the layers."""
    with ExitStack() as stack:
        for number, layer in enumerate(layers):

            def hook(_: nn.Module, arguments: Any, keywords: Any, output: Any, number: int = number) -> None:
                boundaries.record(number, arguments, keywords, output)

            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def skipping_layers(layers: Sequence[nn.Module], out: Collection[int]) -> Iterator[None]:
    """Within the context, the layers with these indices run but return their input states.

    Their side effects remain: caches are filled, and later layers find what these layers share with them.
    """

    def pass_through(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        seen = Boundaries()
        seen.record(0, arguments, keywords, output)
        return _wrap(output, seen.before[0])

    with ExitStack() as stack:
        for number in out:
            hook = layers[number].register_forward_hook(pass_through, with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _wrap(output: Tensor | tuple[Any, ...], states: Tensor) -> Tensor | tuple[Any, ...]:
    """Return states in the form of a layer's output."""
    return states if isinstance(output, Tensor) else (states, *output[1:])


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within the context, replace the ``forward`` of modules."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


class PartialPasses:
    """Forward passes over one batch with some layers removed."""

    def __init__(
        self,
        model: PreTrainedModel,
        axis_map: AxisMap,
        tokens: Tensor,
        removed: Collection[int] = (),
        *,
        reuse: bool = True,
        number: int = 0,
    ) -> None:
        """Run one pass and keep its states.

        Args:
            model: in evaluation mode.
            axis_map: the model's.
            tokens: (B, T) token ids on the model's device.
            removed: layers that are removed in every pass.
            reuse: whether later passes start from the states of this one.
            number: the batch's number among those of the setting.
        """
        assert not model.training, "layers are scored in evaluation mode"
        self.model, self.axis_map, self.tokens = model, axis_map, tokens
        self.removed, self.reuse, self.number = frozenset(removed), reuse, number
        self.layers = layer_modules(model, axis_map)
        self.boundaries = Boundaries()
        # Hooks run in the order of registration, so the recorded output is what the layer itself returned.
        with recording_boundaries(self.layers, self.boundaries), skipping_layers(self.layers, self.removed):
            #: (B, T, D) the final states without the layers in ``removed``.
            self.whole = final_states(model, tokens)

    @property
    def stackable(self) -> bool:
        """Whether passes from several starts may run as one batch: every layer returns only its states."""
        outputs = self.boundaries.outputs.values()
        return self.reuse and all(
            isinstance(output, Tensor) and output.shape[:2] == self.tokens.shape for output in outputs
        )

    def layers_from(self, stop: int) -> int:
        """Return the number of layers that compute in a pass which goes on behind layer ``stop - 1``."""
        if not self.reuse:
            return len(self.layers)
        return sum(layer not in self.removed for layer in range(stop, len(self.layers)))

    def without(self, start: int, stop: int) -> Tensor:
        """Return (B, T, D) final states with layers ``start`` to ``stop - 1`` removed as well."""
        if self.reuse:
            return self.final_states_from([start], stop)
        with skipping_layers(self.layers, self.removed | set(range(start, stop))):
            return final_states(self.model, self.tokens)

    def final_states_from(self, starts: Sequence[int], stop: int) -> Tensor:
        """Return (n × B, T, D) final states where layer ``stop`` reads the input of each of n ``starts``."""
        states = [self.boundaries.before[start] for start in starts]
        given = torch.cat([values.to(states[-1].device) for values in states]) if states[1:] else states[0]
        forwards = {self.layers[layer]: self._pass_through(layer) for layer in {*range(stop), *self.removed}}
        forwards[self.layers[stop - 1]] = lambda *_, **__: _wrap(self.boundaries.outputs[stop - 1], given)
        with _replaced(forwards):
            return final_states(self.model, self.tokens.repeat(len(starts), 1))

    def _pass_through(self, layer: int) -> Forward:
        """Return a ``forward`` for a layer that returns its input states."""
        place, output = self.boundaries.places[layer], self.boundaries.outputs[layer]

        def forward(*arguments: Any, **keywords: Any) -> Any:
            return _wrap(output, arguments[place] if isinstance(place, int) else keywords[place])

        return forward


@dataclass(frozen=True, eq=False)
class DepthSetting:
    """The teacher and the calibration text that layers are scored with."""

    model: PreTrainedModel
    """In evaluation mode."""
    axis_map: AxisMap
    batches: Sequence[Tensor]
    """This process's batches, each (B, T) token ids."""
    reuse: bool = True
    """Whether passes may start at an inner layer; see ``depends_on_states_alone``."""
    accelerator: Accelerator | None = None
    """Of the processes that share the calibration set; None if there is only one process."""
    advance: Callable[[float], None] = lambda blocks: None
    """Called with blocks × forward passes after each pass or part of one."""

    @property
    def layers(self) -> int:
        """The teacher's number of layers, L."""
        return self.axis_map.teacher.layers

    @cached_property
    def _head(self) -> float:
        return head_share(self.axis_map)

    def passes(self, removed: Collection[int] = ()) -> Iterator[PartialPasses]:
        """Yield for each batch a full pass, without the layers in ``removed``."""
        for number, batch in enumerate(self.batches):
            tokens = batch.to(self.model.device, torch.long)
            passes = PartialPasses(
                self.model, self.axis_map, tokens, removed, reuse=self.reuse, number=number
            )
            self.spent(len(batch), self.layers)
            yield passes

    def spent(self, blocks: int, layers: int, heads: int = 0) -> None:
        """Report that so many layers, and so often the head, ran over some blocks."""
        self.advance(blocks * ((1 - self._head) * layers / self.layers + self._head * heads))

    def mean(self, total: Tensor, count: int) -> Tensor:
        """Return the sum of all processes' totals over the sum of their counts, the same in each process.

        Args:
            total: this process's, on the CPU.
            count: the number of summands in ``total``.
        """
        return mean_of_all(total, count, self.accelerator)


def mean_of_all(total: Tensor, count: int, accelerator: Accelerator | None) -> Tensor:
    """Return the sum of all processes' totals over the sum of their counts, the same in each process."""
    if accelerator is not None and accelerator.num_processes > 1:
        parts = gather_object([(total, count)])
        total, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
    assert count, "nothing was looked at"
    return total / count


#: Tokens on which fast and full passes are compared.
_TOKENS_COMPARED = 8


@torch.no_grad()
def depends_on_states_alone(model: PreTrainedModel, axis_map: AxisMap, calibration: Tensor) -> bool:
    """Whether passes that start at an inner layer give the same states as full passes.

    Compares passes that start at each layer and remove none, and two that remove some layers.

    Args:
        model: in evaluation mode.
        axis_map: the model's.
        calibration: (N, T) token ids, of which the first few are used.
    """
    tokens = calibration[:1, :_TOKENS_COMPARED].to(model.device, torch.long)
    layers = axis_map.teacher.layers
    fast = PartialPasses(model, axis_map, tokens)
    whole = PartialPasses(model, axis_map, tokens, reuse=False)
    wanted = {(layer, layer): fast.whole for layer in range(1, layers)}
    wanted |= {block: whole.without(*block) for block in {(0, 1), (layers // 3, max(1, layers - 1))}}
    try:
        return all(_close(fast.without(*block), states) for block, states in wanted.items())
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError):
        return False


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether states agree to half the digits of their dtype; true if the difference is NaN."""
    off = float((found - wanted).abs().max())
    return not off > torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
