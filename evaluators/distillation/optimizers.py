"""The optimisers of training, and the memory that each needs.

AdamW keeps weights, gradients and two moments in float32, 16 bytes a parameter. AdamW in 8 bits takes 6:
bfloat16 weights and gradients, and moments of one byte a value, with a scale for each block of 256 (arXiv
2110.02861). An update smaller than half the spacing of bfloat16 would be lost if it were rounded to nearest.
So new weights are rounded up or down at random, such that the update is right on average (stochastic
rounding, arXiv 2010.06192).

What is too small to save memory keeps its precision there too: norms, biases, matrices of fewer than 4096
values, and the last values of a matrix that fill no block have float32 moments and a float32 copy of the
weights, from which the bfloat16 weight is rounded. Weights of norms lie near 1, where bfloat16 has steps of
0.4 to 0.8%: random rounding would shake them by more than training moves them. A head or embedding, tied or
not, is a matrix like any other.

The rounding draws the same random numbers at the same step, whatever was drawn before. So a training that is
resumed or rolled back ends in the same bits, and processes that train copies of a student keep equal copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_BETAS = (0.9, 0.95)
_EPSILON = 1e-8
#: Of matrices alone.
_WEIGHT_DECAY = 0.01
#: Values that share a scale.
_BLOCK = 256
#: Matrices of fewer values are not quantised.
_FEWEST = 4096
#: Values that are updated at once, multiples of the block. They bound the memory of the float32 copies; on a
#: CPU fewer are faster.
_SLICE, _SLICE_CPU = 2**22, 2**18
#: Bytes of intermediates for each value of a slice, as counted on a CPU.
_WORKSPACE = 56


class OptimizerName(StrEnum):
    """An optimiser, by the name that its flag and the configuration have for it."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"

    @property
    def weights(self) -> torch.dtype:
        """The dtype of the weights while they are trained."""
        return torch.bfloat16 if self is OptimizerName.ADAMW_8BIT else torch.float32


class TrainingBytes(NamedTuple):
    """The memory of a training, without activations."""

    weights: int
    gradients: int
    states: int
    """Moments, scales, and float32 copies of weights."""

    @property
    def total(self) -> int:
        """All three."""
        return sum(self)


def training_bytes(shapes: Iterable[Sequence[int]], name: OptimizerName) -> TrainingBytes:
    """Return the memory of weights, gradients and optimiser for tensors of these shapes, tied ones once.

    The counters of steps, 4 bytes a tensor, are left out.
    """
    sizes = [(math.prod(shape), _quantised(shape)) for shape in shapes]
    values, quantised = sum(size for size, _ in sizes), sum(part for _, part in sizes)
    weights = name.weights.itemsize * values
    if name is OptimizerName.ADAMW:
        return TrainingBytes(weights, weights, 8 * values)
    return TrainingBytes(
        weights, weights, 2 * quantised + 8 * quantised // _BLOCK + 12 * (values - quantised)
    )


def bytes_per_parameter(name: OptimizerName) -> float:
    """Return what ``training_bytes`` comes to for each parameter of large matrices: 16, or 6.03."""
    return training_bytes([(_FEWEST, _BLOCK)], name).total / (_FEWEST * _BLOCK)


def workspace_bytes(name: OptimizerName, largest: int) -> int:
    """Return what a step of the optimiser needs besides, for a moment.

    Args:
        name: the optimiser.
        largest: values of the largest tensor.
    """
    return 0 if name is OptimizerName.ADAMW else _WORKSPACE * min(largest, _SLICE)


def state_bytes(parameters: Iterable[nn.Parameter], name: OptimizerName) -> int:
    """Return the memory of the optimiser's states in this process, which may hold shards."""
    local = (one.to_local() if isinstance(one, DTensor) else one for one in parameters)
    return training_bytes((one.shape for one in local), name).states


def _quantised(shape: Sequence[int]) -> int:
    """Return how many values of a tensor, from the first, have moments in 8 bits."""
    values = math.prod(shape)
    return values - values % _BLOCK if len(shape) > 1 and values >= _FEWEST else 0


@torch.no_grad()
def convert_weights(model: nn.Module, name: OptimizerName) -> None:
    """Give the parameters of a model the dtype in which the optimiser trains them.

    Buffers keep at least the dtype that they have: frequencies of rotary positions do not bear bfloat16.
    """
    if name.weights is torch.float32:
        model.float()
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.to(name.weights).contiguous()


def make_optimizer(module: nn.Module, name: OptimizerName, rate: float) -> torch.optim.Optimizer:
    """Build an optimiser for all parameters of a module.

    Args:
        module: its parameters have the optimiser's dtype, see ``convert_weights``.
        name: the optimiser.
        rate: the learning rate.
    """
    groups = _groups(module)
    if name is OptimizerName.ADAMW_8BIT:
        return AdamW8bit(groups, rate)
    return torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPSILON, fused=True)


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Split the parameters: weight decay applies to matrices, not to norms and biases."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class AdamW8bit(torch.optim.Optimizer):
    """AdamW in 8 bits, by the arithmetic of torchao.

    Its own optimiser of this name comes to the same bits, but compiles its step for every shape, which takes
    longer than many a short distillation; uncompiled it would hold copies of whole tensors in float32. This
    one works on slices, one after the other, and compiles nothing.

    The states of a tensor of n values, the first q of which are quantised: ``codes`` (2, q) and ``scales``
    (2, q / 256) of both moments; ``rest`` (3, n - q), weights and moments in float32; and ``step``. All are
    ordinary tensors, so checkpoints need to know nothing of them.

    Args:
        groups: groups of parameters, each with its ``weight_decay``; bfloat16, contiguous, not sharded.
        rate: the learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], rate: float) -> None:
        super().__init__(groups, {"lr": rate, "betas": _BETAS, "eps": _EPSILON})
        self._torchao = _torchao()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, _ in pairs:
            if not self.state[parameter]:
                self.state[parameter] = _new_state(parameter)
            self.state[parameter]["step"] += 1
        if pairs:
            first = pairs[0][0]
            with _drawn_for(int(self.state[first]["step"]), first.device):
                for parameter, group in pairs:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        state, quantised = self.state[parameter], _quantised(parameter.shape)
        assert parameter.grad is not None
        weights, gradient = parameter.view(-1), parameter.grad.reshape(-1)
        size = _SLICE_CPU if parameter.device.type == "cpu" else _SLICE
        for start in range(0, quantised, size):
            part = slice(start, min(start + size, quantised))
            blocks = slice(start // _BLOCK, part.stop // _BLOCK)
            codes, scales = state["codes"][:, part], state["scales"][:, blocks]
            self._update_slice(weights[part], gradient[part], state["step"], codes, scales, group)
        if "rest" in state:
            exact, *moments = state["rest"]
            self._adamw(exact, gradient[quantised:], state["step"], moments, group)
            weights[quantised:] = exact

    def _update_slice(
        self,
        weights: Tensor,
        gradient: Tensor,
        step: Tensor,
        codes: Tensor,
        scales: Tensor,
        group: Mapping[str, Any],
    ) -> None:
        """Update (s,) weights by the (s,) gradient, with (2, s) codes and (2, s / 256) scales."""
        tables = _tables(weights.device)
        moments = [
            self._torchao.dequantise(*moment)
            for moment in zip(codes, (table.values for table in tables), scales, strict=True)
        ]
        self._adamw(weights, gradient, step, moments, group)
        for number, (moment, table) in enumerate(zip(moments, tables, strict=True)):
            scaled, scales[number] = self._torchao.scale(moment, _BLOCK)
            codes[number] = torch.bucketize(scaled, table.borders, out_int32=True, right=True)

    def _adamw(
        self,
        weights: Tensor,
        gradient: Tensor,
        step: Tensor,
        moments: Sequence[Tensor],
        group: Mapping[str, Any],
    ) -> None:
        """Update weights, float32 or stochastically rounded bfloat16, and float32 moments in place."""
        rate, (beta1, beta2) = torch.tensor(group["lr"], dtype=torch.float32), group["betas"]
        rules = rate, beta1, beta2, group["weight_decay"], group["eps"]
        rounded = weights.dtype is torch.bfloat16
        self._torchao.adam(weights, gradient, step, *moments, None, *rules, True, rounded)

    def load_state_dict(self, state_dict: Any) -> None:
        """Load what ``state_dict`` returned; unlike the base class, keep the dtypes of the states."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            device = parameters[number].device
            moved = {name: value.to("cpu" if name == "step" else device) for name, value in state.items()}
            self.state[parameters[number]] = moved


def _new_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    quantised, device = _quantised(parameter.shape), parameter.device
    state = {"step": torch.zeros(())}
    if quantised:
        # With a scale of zero every code means zero.
        state["codes"] = torch.zeros(2, quantised, dtype=torch.uint8, device=device)
        state["scales"] = torch.zeros(2, quantised // _BLOCK, device=device)
    if quantised < parameter.numel():
        state["rest"] = torch.zeros(3, parameter.numel() - quantised, device=device)
        state["rest"][0] = parameter.view(-1)[quantised:]
    return state


class _Torchao(NamedTuple):
    """The functions of torchao that are used."""

    adam: Callable[..., None]
    """One step of AdamW in float32, on weights and moments of any dtype."""
    dequantise: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Maps codes, the values that they stand for, and scales to float32."""
    scale: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """Divides each block by its largest magnitude; returns the scales too."""
    table: Callable[[bool], list[float]]
    """The 256 values that codes stand for, ascending, with negative ones or without."""


@cache
def _torchao() -> _Torchao:
    """Import torchao; who trains by AdamW need not have it."""
    from torchao.optim.adam import single_param_adam
    from torchao.optim.quant_utils import create_dynamic_map, dequant_with_qmap, scale_tensor

    return _Torchao(single_param_adam, dequant_with_qmap, scale_tensor, create_dynamic_map)


class _Table(NamedTuple):
    values: Tensor
    """(256,) the values that codes stand for."""
    borders: Tensor
    """(255,) the least number that is rounded up to the next one, for each but the last."""


@cache
def _tables(device: torch.device) -> tuple[_Table, _Table]:
    """Return the tables of the first moment, which has a sign, and of the second."""

    def table(signed: bool) -> _Table:
        values = torch.tensor(_torchao().table(signed), device=device)
        # The middle is a number of float64; torchao rounds up from the first of float32 that is not below it.
        middles = values[:-1].double() + ((values[1:] - values[:-1]) * 0.5).double()
        borders = middles.float()
        above = torch.nextafter(borders, torch.ones_like(borders))
        return _Table(values, torch.where(borders < middles, above, borders))

    return table(True), table(False)


@contextmanager
def _drawn_for(step: int, device: torch.device) -> Iterator[None]:
    """Within the context, random numbers are those of a step; afterwards they go on as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(step)
        yield
