"""Collect second moments in one forward pass, from which bases of hidden and repairs of students follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.precision import full_precision, products
from space.axes.architecture import Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap, MappedTensor, ResidualStream, wildcard_name
from space.cutting import moments
from space.cutting.basis import fold_norms, hidden_dimension
from space.cutting.extraction import saved_tensors
from space.cutting.moments import Moments, NormEnergy, expert_dimension, reading_dimensions
from space.cutting.product_tracing import ProductTracer, TracedProduct
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


def second_moment(rows: Tensor) -> Tensor:
    """Return Σxxᵀ over (n, D) rows in their dtype, within autocast too."""
    with full_precision(rows):
        return rows.T @ rows


def rms_normalized(states: Tensor) -> Tensor:
    """Return (n, D) float32 from (..., D): each state divided by its root mean square."""
    rows = states.detach().flatten(0, -2).float()
    return rows * rows.square().mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()


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


_TOKENS_AT_ONCE = 4096


class MomentSum:
    """A streaming float64 sum, and its number of tokens."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, sums: Tensor, tokens: int) -> None:
        """Add a sum over ``tokens`` tokens."""
        self.total = sums.double() if self.total is None else self.total + sums
        self.tokens += tokens

    @property
    def mean(self) -> Tensor:
        """The mean over all tokens, on the CPU; 0 if there were none."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / max(1, self.tokens)


class MomentsListener:
    """Collects second moments of the inputs of matrices, and energies of the inputs of norms.

    It can share the ranking's pass, ``with listener.on(): rank(...)``, as long as that pass runs the whole
    teacher once over each block.
    """

    def __init__(self, model: PreTrainedModel, axis_map: AxisMap) -> None:
        self.model, self.axis_map = model, axis_map
        self.seconds: dict[tuple[str, int], dict[int, MomentSum]] = {}
        self.norms = rms_norms(model, axis_map)
        self.energies = {name: MomentSum() for name in self.norms}
        self.stream = {name: MomentSum() for name in stream_norms(axis_map)}
        self._tensors = {tensor.name: tensor for tensor in axis_map.tensors}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context, collect from every batch that the model reads."""
        matrices = [tensor for tensor in self.axis_map.tensors if reading_dimensions(tensor)]
        previous = self.model.get_experts_implementation()
        with ExitStack() as stack:
            for name in self.norms:
                module = self.model.get_submodule(self._tensors[name].module)
                stack.callback(
                    module.register_forward_pre_hook(self._energy_hook(name), with_kwargs=True).remove
                )
            for name in self.stream:
                module = self.model.get_submodule(self._tensors[name].module)
                stack.callback(module.register_forward_pre_hook(self._stream_hook(name)).remove)
            self.model.set_experts_implementation("eager")
            stack.callback(self.model.set_experts_implementation, previous)
            stack.enter_context(ProductTracer(self.model, matrices, self._collect))
            yield

    def _energy_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def note(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            states = next(iter((*arguments, *keywords.values())))
            rows = states.detach().flatten(0, -2).float()
            squares = rows.square()
            squares = squares / squares.mean(-1, keepdim=True).clamp_min(1e-30)
            self.energies[name].add(squares.sum(0), len(rows))

        return note

    def _stream_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = rms_normalized(arguments[0])
            self.stream[name].add(second_moment(rows), len(rows))

        return take

    def _collect(self, read: TracedProduct) -> None:
        if read.dimension not in reading_dimensions(read.tensor):
            return
        found = self.seconds.setdefault((read.tensor.name, read.dimension), {})
        by_expert = read.values if read.experts else read.values[None]
        for expert, values in enumerate(by_expert, read.first_expert):
            rows = values.detach().reshape(-1, values.shape[-1]).float()
            found.setdefault(expert, MomentSum()).add(second_moment(rows), len(rows))

    def moments(self, fingerprint: str) -> Moments:
        """Return the collected moments.

        Args:
            fingerprint: of teacher and calibration set.

        Raises:
            InputError: a moment is not finite.
        """
        reads = {
            name: moments.InputMoment(place, self._second(self._tensors[name], sums))
            for (name, place), sums in self.seconds.items()
        }
        energies = {
            name: NormEnergy(energy.mean, self.norms[name])
            for name, energy in self.energies.items()
            if energy.total is not None
        }
        stream = {name: second.mean for name, second in self.stream.items() if second.total is not None}
        named = [(n, r.second) for n, r in reads.items()] + [(n, e.mean) for n, e in energies.items()]
        for name, values in [*named, *stream.items()]:
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    "The teacher's activations have to be finite on the calibration set",
                    f"what {name} reads is not",
                    "Try --dtype float32, or another teacher",
                )
        return Moments(reads, energies, fingerprint, stream)

    def _second(self, tensor: MappedTensor, sums: dict[int, MomentSum]) -> Tensor:
        """Return (n, n), or (E, n, n) with zeros for experts to which no token was routed."""
        place = expert_dimension(tensor)
        if place is None:
            return sums[0].mean
        nothing = torch.zeros_like(next(iter(sums.values())).mean)
        experts = tensor.dimensions[place].length
        return torch.stack([sums[e].mean if e in sums else nothing for e in range(experts)])


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
    """Collect moments in one forward pass over the calibration set.

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
        for batch in calibration.split(max(1, _TOKENS_AT_ONCE // calibration.shape[1])):
            final_states(model, batch.to(model.device, torch.long))
            advance(len(batch))
    return listener.moments(fingerprint)


@torch.no_grad()
def rms_norms(model: PreTrainedModel, axis_map: AxisMap) -> dict[str, float]:
    """Return the RMS norms over hidden: each weight's name, and the offset (0 or 1) added to the weight.

    They are recognised by their output for random input. Norms that subtract the mean or have a bias are left
    out, since scaling their weight cannot correct their output in a narrower student.
    """
    found: dict[str, float] = {}
    for tensor in axis_map.tensors:
        if tensor.axes != (frozenset({Axis.HIDDEN}),) or not tensor.name.endswith("weight"):
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
