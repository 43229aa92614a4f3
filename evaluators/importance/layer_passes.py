"""Running a teacher without some of its layers, by the class's own forward.

The naive way runs the whole model, and layers that are out pass on what they were given. The quick
way starts from one full pass whose states between the layers were kept: what lies before the layers
that are out is not run again, since the last of them hands over the states that the first was given.

Some classes hand keys, values or more from layer to layer beside the states. Then a pass that does
not run the first layers differs from one that does, or fails, and every pass has to be a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from space.axes.axis_map import AxisMap, layer_modules

Forward = Callable[..., Any]


@dataclass
class Boundaries:
    """The states at both ends of every layer, of one forward pass."""

    places: dict[int, int | str] = field(default_factory=dict)
    """Where among a layer's arguments its states are: a position or a name."""
    before: dict[int, Tensor] = field(default_factory=dict)
    """(B, T, D) what each layer was given."""
    outputs: dict[int, Tensor | tuple[Any, ...]] = field(default_factory=dict)
    """What each layer returned: states, or states and more."""

    def note(
        self,
        layer: int,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        output: Tensor | tuple[Any, ...],
    ) -> None:
        """Take in one call of a layer."""
        after = output if isinstance(output, Tensor) else output[0]
        given: list[tuple[int | str, Any]] = [*enumerate(arguments), *keywords.items()]
        self.places[layer], self.before[layer] = next(
            (place, value)
            for place, value in given
            if isinstance(value, Tensor) and value.shape == after.shape
        )
        self.outputs[layer] = output

    def clear(self) -> None:
        """Forget the pass."""
        self.before.clear()
        self.outputs.clear()

    @property
    def states(self) -> list[Tensor]:
        """L + 1 times (B, T, D): what each layer was given, and what the last one returned."""
        last = self.outputs[len(self.before) - 1]
        return [self.before[n] for n in range(len(self.before))] + [
            last if isinstance(last, Tensor) else last[0]
        ]


@contextmanager
def recording_boundaries(layers: Sequence[nn.Module], boundaries: Boundaries) -> Iterator[None]:
    """Within the context every pass through the layers is noted."""
    with ExitStack() as stack:
        for number, layer in enumerate(layers):

            def hook(_: nn.Module, arguments: Any, keywords: Any, output: Any, number: int = number) -> None:
                boundaries.note(number, arguments, keywords, output)

            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def skipping_layers(layers: Sequence[nn.Module], out: Collection[int]) -> Iterator[None]:
    """Within the context the layers of these numbers run, but hand on what they were given.

    As they run, whatever else they do is done: caches are filled, other layers find what they share.
    """

    def hand_on(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        seen = Boundaries()
        seen.note(0, arguments, keywords, output)
        return _like(output, seen.before[0])

    with ExitStack() as stack:
        for number in out:
            hook = layers[number].register_forward_hook(hand_on, with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _like(output: Tensor | tuple[Any, ...], states: Tensor) -> Tensor | tuple[Any, ...]:
    return states if isinstance(output, Tensor) else (states, *output[1:])


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within the context modules compute something else."""
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
    """Passes over one batch with layers out."""

    def __init__(
        self,
        model: PreTrainedModel,
        axis_map: AxisMap,
        tokens: Tensor,
        gone: Collection[int] = (),
        *,
        reuse: bool = True,
    ) -> None:
        """Run one pass and keep its states.

        Args:
            model: in evaluation mode.
            axis_map: its map.
            tokens: (B, T) token numbers on the model's device.
            gone: layers that are out in every pass.
            reuse: whether later passes start from the states of this one.
        """
        assert not model.training, "layers are scored in evaluation mode"
        self.model, self.axis_map, self.tokens = model, axis_map, tokens
        self.gone, self.reuse = frozenset(gone), reuse
        self.layers = layer_modules(model, axis_map)
        self.boundaries = Boundaries()
        # Hooks run in the order in which they were made: what is noted is what a layer itself returned.
        with recording_boundaries(self.layers, self.boundaries), skipping_layers(self.layers, self.gone):
            #: (B, T, D) the final states with ``gone`` out.
            self.whole = final_states(model, tokens)

    @property
    def stackable(self) -> bool:
        """Whether states of several starts may run as one batch: layers return nothing else."""
        outputs = self.boundaries.outputs.values()
        return self.reuse and all(
            isinstance(output, Tensor) and output.shape[:2] == self.tokens.shape for output in outputs
        )

    def without(self, start: int, stop: int) -> Tensor:
        """(B, T, D) the final states with the layers from ``start`` to before ``stop`` out, too."""
        if self.reuse:
            return self.handed_over([start], stop)
        with skipping_layers(self.layers, self.gone | set(range(start, stop))):
            return final_states(self.model, self.tokens)

    def handed_over(self, starts: Sequence[int], stop: int) -> Tensor:
        """(n × B, T, D) the final states if layer ``stop`` is given what each of n ``starts`` was given."""
        states = [self.boundaries.before[start] for start in starts]
        given = torch.cat([values.to(states[-1].device) for values in states]) if states[1:] else states[0]
        forwards = {self.layers[layer]: self._hand_on(layer) for layer in {*range(stop), *self.gone}}
        forwards[self.layers[stop - 1]] = lambda *_, **__: _like(self.boundaries.outputs[stop - 1], given)
        with _replaced(forwards):
            return final_states(self.model, self.tokens.repeat(len(starts), 1))

    def _hand_on(self, layer: int) -> Forward:
        """A layer that computes nothing."""
        place, output = self.boundaries.places[layer], self.boundaries.outputs[layer]

        def forward(*arguments: Any, **keywords: Any) -> Any:
            return _like(output, arguments[place] if isinstance(place, int) else keywords[place])

        return forward


@dataclass(frozen=True, eq=False)
class DepthSetting:
    """A teacher and its text."""

    model: PreTrainedModel
    """In evaluation mode."""
    axis_map: AxisMap
    batches: Sequence[Tensor]
    """Each (B, T) token numbers, those of this process."""
    reuse: bool = True
    """Whether passes may start in the middle, from ``sharing.only_states``."""
    accelerator: Accelerator | None = None
    """Of the processes, each with batches of its own; None for this one alone."""

    @property
    def layers(self) -> int:
        """L, the teacher's."""
        return self.axis_map.teacher.layers

    def passes(self, gone: Collection[int] = ()) -> Iterator[PartialPasses]:
        """A whole pass over each batch, with some layers gone."""
        for batch in self.batches:
            tokens = batch.to(self.model.device, torch.long)
            yield PartialPasses(self.model, self.axis_map, tokens, gone, reuse=self.reuse)

    def mean(self, total: Tensor, count: int) -> Tensor:
        """The sum of all processes' totals over the sum of their counts; the same in each.

        Args:
            total: of this process, on the host.
            count: of its summands.
        """
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            parts = gather_object([(total, count)])
            total, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        assert count, "nothing was looked at"
        return total / count


#: Tokens that both ways are compared on.
_TOKENS = 8


@torch.no_grad()
def depends_on_states_alone(model: PreTrainedModel, axis_map: AxisMap, calibration: Tensor) -> bool:
    """Whether passes that start in the middle give what whole passes give.

    Compared are passes that start at every layer and lack none, and two that lack some.

    Args:
        model: in evaluation mode.
        axis_map: its map.
        calibration: (N, T) token numbers, of which a few are used.
    """
    tokens = calibration[:1, :_TOKENS].to(model.device, torch.long)
    layers = axis_map.teacher.layers
    quick = PartialPasses(model, axis_map, tokens)
    whole = PartialPasses(model, axis_map, tokens, reuse=False)
    wanted = {(layer, layer): quick.whole for layer in range(1, layers)}
    wanted |= {block: whole.without(*block) for block in {(0, 1), (layers // 3, max(1, layers - 1))}}
    try:
        return all(_alike(quick.without(*block), states) for block, states in wanted.items())
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError):
        return False


def _alike(found: Tensor, wanted: Tensor) -> bool:
    """Up to half the digits; where there are no numbers, nothing speaks against it."""
    off = float((found - wanted).abs().max())
    return not off > torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
