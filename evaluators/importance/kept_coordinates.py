"""How many coordinates a basis keeps where some norms cannot be folded: as few as the teacher's loss allows.

Such norms act along coordinates. In another basis they get the best diagonal (``space.cutting.basis``), which
changes the function of the whole teacher, the less the more coordinates are kept. So the loss of the teacher
with these norms is measured for some numbers of coordinates.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_passes import mean_of_all
from evaluators.importance.layer_removal import NextTokenLoss
from space.axes.axis_map import AxisMap
from space.cutting.basis import Basis

#: How much a basis may add to the whole teacher's loss, in nats per token.
TOLERANCE = 0.01
#: Tokens on which it is measured. The two losses are of the same tokens, so that few suffice.
SAMPLE_TOKENS = 4096
_FEWEST = 4

#: (B, T) token ids and the final states (B, T, D) of each batch.
Finals = Iterable[tuple[Tensor, Tensor]]


def fitting_basis(make: Callable[[int], Basis], loss: Callable[[Basis | None], float], size: int) -> Basis:
    """Return the basis with the fewest kept coordinates, of some numbers, that adds little to the loss.

    Args:
        make: makes the basis that keeps so many coordinates.
        loss: measures the whole teacher in a basis, or as it is.
        size: D.

    Returns:
        The basis, with what it adds; if that is more than ``TOLERANCE`` even for half of the coordinates, the
        one that keeps these.
    """
    exact, numbers = loss(None), kept_numbers(size)

    @cache
    def measured(number: int) -> Basis:
        basis = make(number)
        return replace(basis, loss_added=loss(basis) - exact)

    fits = bisect_left(numbers[:-1], True, key=lambda number: measured(number).loss_added <= TOLERANCE)
    return measured(numbers[fits])


def kept_numbers(size: int) -> list[int]:
    """Return the numbers of coordinates to try for a stream of ``size``: none, and by doubling up to half."""
    numbers = [0]
    while 2 * max(numbers[-1], _FEWEST // 2) <= size // 2:
        numbers.append(2 * max(numbers[-1], _FEWEST // 2))
    return numbers


class BasisLoss:
    """Measures the loss of the whole teacher with its norms as a basis has them, in nats per token.

    Args:
        model: the teacher.
        axis_map: the teacher's.
        finals: gives final states of this process's sample, each time anew.
        accelerator: of the processes that share the sample; None if there is only one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        axis_map: AxisMap,
        finals: Callable[[], Finals],
        accelerator: Accelerator | None = None,
    ) -> None:
        self.model, self.axis_map, self.finals, self.accelerator = model, axis_map, finals, accelerator

    @torch.no_grad()
    def __call__(self, basis: Basis | None) -> float:
        """Return the loss in a basis; None for the teacher as it is."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        with ExitStack() as stack:
            if basis is not None:
                stack.enter_context(norms_in_basis(self.model, self.axis_map, basis))
            for tokens, states in self.finals():
                added, number = NextTokenLoss(self.model, tokens)(states)
                total, count = total + added, count + number
        return float(mean_of_all(total, count, self.accelerator))


def finals_of(model: PreTrainedModel, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each (B, T) batch and its final states, computed by a model in memory."""
    for batch in batches:
        tokens = batch.to(model.device, torch.long)
        yield tokens, final_states(model, tokens)


@contextmanager
def norms_in_basis(model: PreTrainedModel, axis_map: AxisMap, basis: Basis) -> Iterator[None]:
    """Within the context, norms that cannot be folded multiply along the directions of a basis.

    The model then computes what the whole teacher computes in this basis, in its own coordinates.
    """
    assert axis_map.stream is not None or not basis.norms, "only a stream that can be turned has a basis"
    with ExitStack() as stack:
        for name, norm in basis.norms.items():
            assert axis_map.stream is not None
            module = model.get_submodule(name.rpartition(".")[0])
            added = getattr(module, "bias", None)
            bias = None if added is None else added.detach().clone()
            stack.enter_context(_filled(model.get_parameter(name), 1 - axis_map.stream.offset))
            if added is not None:
                stack.enter_context(_filled(added, 0.0))

            def along(
                _: nn.Module, __: Any, output: Tensor, gain: Tensor = norm.gain, bias: Tensor | None = bias
            ) -> Tensor:
                rotation, gain = basis.rotation.to(output.device), gain.to(output.device)
                turned = (output.float() @ rotation * gain) @ rotation.T
                return (turned if bias is None else turned + bias.float()).to(output.dtype)

            stack.callback(module.register_forward_hook(along).remove)
        yield


@contextmanager
def _filled(parameter: nn.Parameter, value: float) -> Iterator[None]:
    """Within the context, a parameter has one value everywhere; its own tensor is not written to."""
    own = parameter.data
    parameter.data = torch.full_like(own, value)
    try:
        yield
    finally:
        parameter.data = own
