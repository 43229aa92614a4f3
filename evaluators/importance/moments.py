"""Collect second moments in one forward pass, from which bases of hidden and repairs of students follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import decoder, final_states
from evaluators.importance.precision import full_precision, products
from space.axes.architecture import Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap, MappedTensor, ResidualStream, wildcard_name
from space.cutting.basis import fold_norms, hidden_dimension
from space.cutting.extraction import saved_tensors
from space.cutting.moments import (
    InputMoment,
    Moments,
    NormEnergy,
    expert_dimension,
    reading_dimensions,
    widest,
)
from space.cutting.product_tracing import ProductTracer, TracedProduct
from space.input_error import InputError


class Covariance:
    """A streaming float64 sum of x̂x̂ᵀ, where x̂ is the residual stream divided by its root mean square."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, states: Tensor) -> None:
        """Add (..., D) states at the input of a norm."""
        rows = rms_normalized(states)
        product = second_moment(rows).double()
        self.total = product if self.total is None else self.total + product
        self.tokens += len(rows)

    @property
    def mean(self) -> Tensor:
        """The mean over all tokens and norms, (D, D) float64 on the CPU."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / self.tokens


def second_moment(rows: Tensor) -> Tensor:
    """Return Σxxᵀ over (n, D) rows in their dtype, within autocast too."""
    with full_precision(rows):
        return rows.T @ rows


def rms_normalized(states: Tensor) -> Tensor:
    """Return (n, D) float32 from (..., D): each state divided by its root mean square."""
    rows = states.detach().flatten(0, -2).float()
    return rows * rows.square().mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()


def norm_inputs(
    model: nn.Module, axis_map: AxisMap, stream: ResidualStream, covariance: Covariance
) -> Iterator[RemovableHandle]:
    """Hook every norm of the residual stream, to add its input to the covariance."""
    for tensor in axis_map.tensors:
        if wildcard_name(tensor.name) in stream.readers:

            def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                states = arguments[0].detach().float()
                covariance.add(states - states.mean(-1, keepdim=True) if stream.centred else states)

            yield model.get_submodule(tensor.module).register_forward_pre_hook(note)


@torch.no_grad()
def reader_weighting(
    model: PreTrainedModel, axis_map: AxisMap, stream: ResidualStream, covariance: Tensor
) -> Tensor:
    """Return Σ WᵀW / tr(WᵀW C) over all matrices W that read the residual stream, (D, D) float64.

    Norm weights are folded into the matrices.

    Args:
        model: the teacher.
        axis_map: the teacher's.
        stream: its norms and the matrices that read them.
        covariance: C, (D, D) float64.
    """
    weights = fold_norms(saved_tensors(model, axis_map), axis_map, stream)
    readers = {name for names in stream.readers.values() for name in names}
    total = torch.zeros_like(covariance)
    for tensor in axis_map.tensors:
        if wildcard_name(tensor.name) in readers:
            rows = weights[tensor.name].movedim(hidden_dimension(tensor.axes), -1).flatten(0, -2).float()
            product = (rows.T @ rows).double().cpu()
            total += product / (product * covariance).sum().clamp_min(1e-30)
    return total


#: Tokens of a batch.
TOKENS_AT_ONCE = 4096


class MomentSum:
    """A streaming float64 sum (float32 on devices without float64), and its number of tokens."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, sums: Tensor, tokens: int) -> None:
        """Add a sum over ``tokens`` tokens."""
        if self.total is None:
            self.total = torch.zeros_like(sums, dtype=widest(sums.device), requires_grad=False)
        self.total += sums.detach()
        self.tokens += tokens

    @property
    def mean(self) -> Tensor:
        """The mean over all tokens, on the CPU; 0 if there were none."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / max(1, self.tokens)

    def finished(self) -> Tensor:
        """Return the mean over all tokens, in float32 on the CPU; the sum is used up."""
        assert self.total is not None, "nothing was listened to"
        total, self.total = self.total, None
        return total.div_(max(1, self.tokens)).float().cpu()


class MomentsListener:
    """Collects second moments of the inputs of matrices, and energies of the inputs of norms.

    It can share the ranking's pass, ``with listener.on(): rank(...)``, as long as that pass runs the whole
    teacher once over each block.

    Args:
        model: the teacher; of one that is loaded in parts, those that ``on`` includes have to be there.
        axis_map: the teacher's.
        every: of so many batches one is heard, the first among them.
    """

    def __init__(self, model: PreTrainedModel, axis_map: AxisMap, every: int = 1) -> None:
        self.model, self.axis_map, self.every = model, axis_map, every
        self.seconds: dict[tuple[str, int], dict[int, MomentSum]] = {}
        self.norms: dict[str, float] = {}
        self.energies: dict[str, MomentSum] = {}
        self.stream: dict[str, MomentSum] = {}
        self._tensors = {tensor.name: tensor for tensor in axis_map.tensors}
        self._batch = -1

    @contextmanager
    def on(self, included: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
        """Within the context, collect from every batch that the model reads.

        Args:
            included: whether to collect at a tensor of this name; by default at all.
        """
        matrices = [t for t in self.axis_map.tensors if reading_dimensions(t) and included(t.name)]
        norms = rms_norms(self.model, self.axis_map, included)
        streams = [name for name in stream_norms(self.axis_map) if included(name)]
        self.norms |= norms
        self._batch = -1
        previous = self.model.get_experts_implementation()
        with ExitStack() as stack:
            stack.callback(decoder(self.model).register_forward_pre_hook(self._begin_batch).remove)
            for name in norms:
                module = self.model.get_submodule(self._tensors[name].module)
                hook = self._energy_hook(self.energies.setdefault(name, MomentSum()))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for name in streams:
                module = self.model.get_submodule(self._tensors[name].module)
                taking = self._stream_hook(self.stream.setdefault(name, MomentSum()))
                stack.callback(module.register_forward_pre_hook(taking).remove)
            self.model.set_experts_implementation("eager")
            stack.callback(self.model.set_experts_implementation, previous)
            stack.enter_context(ProductTracer(self.model, matrices, self._collect))
            yield

    def _begin_batch(self, *_: object) -> None:
        self._batch += 1

    @property
    def _deaf(self) -> bool:
        return self._batch % self.every != 0

    def _energy_hook(
        self, sums: MomentSum
    ) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def note(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            if self._deaf:
                return
            states = next(iter((*arguments, *keywords.values())))
            rows = states.detach().flatten(0, -2).float()
            squares = rows.square()
            squares = squares / squares.mean(-1, keepdim=True).clamp_min(1e-30)
            sums.add(squares.sum(0), len(rows))

        return note

    def _stream_hook(self, sums: MomentSum) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if not self._deaf:
                rows = rms_normalized(arguments[0])
                sums.add(second_moment(rows), len(rows))

        return take

    def _collect(self, read: TracedProduct) -> None:
        if self._deaf or read.dimension not in reading_dimensions(read.tensor):
            return
        found = self.seconds.setdefault((read.tensor.name, read.dimension), {})
        by_expert = read.values if read.experts else read.values[None]
        for expert, values in enumerate(by_expert, read.first_expert):
            rows = values.detach().reshape(-1, values.shape[-1]).float()
            found.setdefault(expert, MomentSum()).add(second_moment(rows), len(rows))

    def moments(self, fingerprint: str) -> Moments:
        """Return what was collected; the sums are used up.

        Args:
            fingerprint: of teacher and calibration set.

        Raises:
            InputError: a moment is not finite.
        """
        whole = Moments({}, {}, fingerprint)
        for part in self.parts(fingerprint):
            whole = replace(
                whole,
                reads={**whole.reads, **part.reads},
                energies={**whole.energies, **part.energies},
                stream={**whole.stream, **part.stream},
                tokens=max(whole.tokens, part.tokens),
            )
        return whole

    def parts(self, fingerprint: str) -> Iterator[Moments]:
        """Yield what was collected, one matrix or norm after the other; the sums are used up.

        Raises:
            InputError: a moment is not finite.
        """
        for name, place in list(self.seconds):
            sums = self.seconds.pop((name, place))
            second, tokens = self._second(self._tensors[name], place, sums)
            read = InputMoment(place, _finite(name, second), tokens)
            yield Moments({name: read}, {}, fingerprint)
        for name, energy in self.energies.items():
            if energy.total is not None:
                mean = NormEnergy(_finite(name, energy.finished()), self.norms[name])
                yield Moments({}, {name: mean}, fingerprint)
        for name, heard in self.stream.items():
            if heard.total is not None:
                turnable = {name: _finite(name, heard.finished())}
                yield Moments({}, {}, fingerprint, turnable, tokens=heard.tokens)

    def _second(self, tensor: MappedTensor, place: int, sums: dict[int, MomentSum]) -> tuple[Tensor, Tensor]:
        """Return (n, n) or (E, n, n), zeros for experts that read no token, with () or (E,) tokens."""
        by_expert = expert_dimension(tensor)
        if by_expert is None:
            return sums[0].finished(), torch.tensor(float(sums[0].tokens))
        experts, length = range(tensor.dimensions[by_expert].length), tensor.dimensions[place].length
        tokens = torch.tensor([float(sums[e].tokens) if e in sums else 0.0 for e in experts])
        second = torch.zeros(len(experts), length, length)
        for expert in sums:
            second[expert] = sums[expert].finished()
        return second, tokens


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "The teacher's activations have to be finite on the calibration set",
            f"what {name} reads is not",
            "Try --dtype float32, or another teacher",
        )
    return values


def stream_norms(axis_map: AxisMap) -> list[str]:
    """Return the weights of the norms of a stream that can be rotated; none if they subtract the mean."""
    if axis_map.stream is None or axis_map.stream.centred:
        return []
    return [t.name for t in axis_map.tensors if axis_map.stream.readers.get(wildcard_name(t.name))]


@torch.no_grad()
def gather_moments(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[float], None] = lambda blocks: None,
    bfloat16: bool = False,
) -> Moments:
    """Collect moments in one forward pass over the calibration set; all of them are in memory.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids.
        fingerprint: of teacher and calibration set.
        advance: called with the number of blocks after each batch.
        bfloat16: whether the pass multiplies matrices in bfloat16.

    Raises:
        InputError: activations are not finite.
    """
    listener = MomentsListener(model, axis_map)
    with listener.on(), products(model, bfloat16):
        for batch in calibration.split(max(1, TOKENS_AT_ONCE // calibration.shape[1])):
            final_states(model, batch.to(model.device, torch.long))
            advance(len(batch))
    return listener.moments(fingerprint)


@torch.no_grad()
def rms_norms(
    model: PreTrainedModel, axis_map: AxisMap, included: Callable[[str], bool] = lambda name: True
) -> dict[str, float]:
    """Return the RMS norms over hidden: each weight's name, and the offset (0 or 1) added to the weight.

    They are recognised by their output for random input. Norms that subtract the mean or have a bias are left
    out, since scaling their weight cannot correct their output in a narrower student.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        included: whether a weight of this name is looked at; by default all are.
    """
    found: dict[str, float] = {}
    for tensor in axis_map.tensors:
        over_hidden = tensor.axes == (frozenset({Axis.HIDDEN}),)
        if not over_hidden or not tensor.name.endswith("weight") or not included(tensor.name):
            continue
        module, weight = model.get_submodule(tensor.module), model.get_parameter(tensor.name)
        if len(list(module.parameters())) > 1:
            continue
        noise = torch.randn(len(weight), generator=torch.Generator().manual_seed(0)) + 0.5
        states = (100 * noise).to(weight.device, weight.dtype)[None, None]
        try:
            output = module(states)
        except BUILD_ERRORS:
            continue  # it takes more arguments than the states
        if not isinstance(output, Tensor) or output.shape != states.shape:
            continue
        unit = states.float() / states.float().square().mean().sqrt()
        for offset in (0.0, 1.0):
            wanted = unit * (weight.float() + offset)
            if bool((output.float() - wanted).abs().max() <= 1e-2 * wanted.abs().max()):
                found.setdefault(tensor.name, offset)
    return found
