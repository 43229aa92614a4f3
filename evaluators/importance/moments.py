"""Collect second moments in one forward pass, from which bases of hidden and repairs of students follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import decoder, final_states
from evaluators.importance.moment_sum import MomentSum, rms_normalized, second_moment
from evaluators.importance.precision import products
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
)
from space.cutting.product_tracing import ProductTracer, TracedProduct
from space.cutting.ridge import halves_are_kept
from space.input_error import InputError


class Covariance:
    """A streaming float64 sum of x̂x̂ᵀ, where x̂ is the residual stream divided by its root mean square."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, states: Tensor, *, centred: bool = False) -> None:
        """Add (..., D) states at the input of a norm, less their mean if the norm subtracts it."""
        states = states.detach().float()
        rows = rms_normalized(states - states.mean(-1, keepdim=True) if centred else states)
        product = second_moment(rows).double()
        self.total = product if self.total is None else self.total + product
        self.tokens += len(rows)

    @property
    def mean(self) -> Tensor:
        """The mean over all tokens and norms, (D, D) float64 on the CPU."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / self.tokens


def norm_inputs(
    model: nn.Module, axis_map: AxisMap, covariance: Covariance, unfolded: Mapping[str, Covariance]
) -> Iterator[RemovableHandle]:
    """Hook every norm of the residual stream, to add its input to the covariance.

    Args:
        model: the teacher.
        axis_map: the teacher's, with a stream.
        covariance: of all norms that read the stream.
        unfolded: those of the norms that cannot be folded, each by itself.
    """
    stream = axis_map.stream
    assert stream is not None, "only a stream that can be turned has a basis"
    for tensor in axis_map.tensors:
        sums = [covariance] if reads_stream(tensor, axis_map) else []
        sums += [unfolded[tensor.name]] if tensor.name in unfolded else []
        if sums:

            def note(_: nn.Module, arguments: tuple[Tensor, ...], sums: Sequence[Covariance] = sums) -> None:
                for one in sums:
                    one.add(arguments[0], centred=stream.centred)

            yield model.get_submodule(tensor.module).register_forward_pre_hook(note)


def reads_stream(tensor: MappedTensor, axis_map: AxisMap) -> bool:
    """Return whether this is the weight of a norm that reads the stream; others write into it."""
    stream = axis_map.stream
    return stream is not None and (
        wildcard_name(tensor.name) in stream.readers
        or (tensor.name == axis_map.roles.final_norm and wildcard_name(tensor.name) in stream.unfolded)
    )


def unfolded_norms(axis_map: AxisMap) -> list[str]:
    """Return the weights of the norms that cannot be folded."""
    if axis_map.stream is None:
        return []
    return [
        tensor.name for tensor in axis_map.tensors if wildcard_name(tensor.name) in axis_map.stream.unfolded
    ]


@torch.no_grad()
def reader_weighting(
    model: PreTrainedModel, axis_map: AxisMap, stream: ResidualStream, covariance: Tensor
) -> Tensor:
    """Return Σ WᵀW / tr(WᵀW C) over all matrices W that read the residual stream, (D, D) float64.

    Norm weights are folded into the matrices; here that of the final norm into a tied head as well.

    Args:
        model: the teacher.
        axis_map: the teacher's.
        stream: its norms and the matrices that read them.
        covariance: C, (D, D) float64.
    """
    weights = fold_norms(saved_tensors(model, axis_map), axis_map, stream)
    readers = {name for names in (*stream.readers.values(), stream.bare) for name in names}
    total, roles = torch.zeros_like(covariance), axis_map.roles
    gains = {name: (weights[name] + stream.offset).float() for name in unfolded_norms(axis_map)}
    for tensor in axis_map.tensors:
        tied = tensor.name == roles.head == roles.embedding and roles.final_norm in gains
        if wildcard_name(tensor.name) in readers or tied:
            rows = weights[tensor.name].movedim(hidden_dimension(tensor.axes), -1).flatten(0, -2).float()
            rows = rows * gains[roles.final_norm] if tied and roles.final_norm else rows
            product = (rows.T @ rows).double().cpu()
            total += product / (product * covariance).sum().clamp_min(1e-30)
    return total


#: Tokens of a batch.
TOKENS_AT_ONCE = 4096


class MomentsListener:
    """Collects second moments of the inputs of matrices, and energies of the inputs of norms.

    It can share the ranking's pass, ``with listener.on(): rank(...)``, as long as that pass runs the whole
    teacher once over each block.

    Args:
        model: the teacher; of one that is loaded in parts, those that ``on`` includes have to be there.
        axis_map: the teacher's.
        every: of so many batches one is heard, the first among them.
        tokens: that are heard, so that halves are kept where they are few; None: many.
    """

    def __init__(
        self, model: PreTrainedModel, axis_map: AxisMap, every: int = 1, tokens: int | None = None
    ) -> None:
        self.model, self.axis_map, self.every, self.tokens = model, axis_map, every, tokens
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
                sums.add_rows(rows, halved=self._halved(rows.shape[-1], experts=False))

        return take

    def _halved(self, inputs: int, *, experts: bool) -> bool:
        return self.tokens is not None and halves_are_kept(self.tokens, inputs, experts)

    def _collect(self, read: TracedProduct) -> None:
        if self._deaf or read.dimension not in reading_dimensions(read.tensor):
            return
        found = self.seconds.setdefault((read.tensor.name, read.dimension), {})
        halved = self._halved(read.values.shape[-1], experts=expert_dimension(read.tensor) is not None)
        by_expert = read.values if read.experts else read.values[None]
        for expert, values in enumerate(by_expert, read.first_expert):
            rows = values.detach().reshape(-1, values.shape[-1]).float()
            found.setdefault(expert, MomentSum()).add_rows(rows, halved=halved)

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
                halves={**whole.halves, **part.halves},
            )
        return whole

    def parts(self, fingerprint: str) -> Iterator[Moments]:
        """Yield what was collected, one matrix or norm after the other; the sums are used up.

        Raises:
            InputError: a moment is not finite.
        """
        for name, place in list(self.seconds):
            sums = self.seconds.pop((name, place))
            read = self._read(self._tensors[name], place, sums)
            _check_finite(name, read.second)
            yield Moments({name: read}, {}, fingerprint)
        for name, energy in self.energies.items():
            if energy.total is not None:
                mean, _ = energy.finished()
                _check_finite(name, mean)
                yield Moments({}, {name: NormEnergy(mean, self.norms[name])}, fingerprint)
        for name, heard in self.stream.items():
            if heard.total is not None:
                second, half = heard.finished()
                _check_finite(name, second)
                halves = {} if half is None else {name: half}
                yield Moments({}, {}, fingerprint, {name: second}, tokens=heard.tokens, halves=halves)

    def _read(self, tensor: MappedTensor, place: int, sums: dict[int, MomentSum]) -> InputMoment:
        """Return the moment of a matrix; zeros for experts that read no token."""
        by_expert = expert_dimension(tensor)
        if by_expert is None:
            tokens = torch.tensor(float(sums[0].tokens))
            second, half = sums[0].finished()
            return InputMoment(place, second, tokens, half)
        experts, length = range(tensor.dimensions[by_expert].length), tensor.dimensions[place].length
        tokens = torch.tensor([float(sums[e].tokens) if e in sums else 0.0 for e in experts])
        second = torch.zeros(len(experts), length, length)
        half = torch.zeros_like(second) if any(one.half is not None for one in sums.values()) else None
        for expert in sums:
            second[expert], part = sums[expert].finished()
            if half is not None and part is not None:
                half[expert] = part
        return InputMoment(place, second, tokens, half)


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "The teacher's activations have to be finite on the calibration set",
            f"what {name} reads is not",
            "Try --dtype float32, or another teacher",
        )


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
    listener = MomentsListener(model, axis_map, tokens=calibration.numel())
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
