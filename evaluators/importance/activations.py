"""Collect the scores of every axis from the teacher's activations in one forward pass.

Neurons and heads are measured at the input of the projection that reads them, hidden dimensions at the
output of the norms of the residual stream, layers at their input and output.

The statistics are float64 sums, so it does not matter which process reads which block. All processes
merge the sums in the same order, so that all end with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.aggregation import (
    L2_OF_MEANS,
    ActivationGrid,
    Aggregation,
    BlockInfluence,
    ExpertSquares,
    SumOfSquares,
)
from evaluators.importance.moments import Covariance, norm_inputs, unfolded_norms
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, layer_modules, wildcard_name
from space.axes.layout import Concatenated
from space.cutting.product_tracing import ProductTracer, TracedProduct, units_along
from space.input_error import InputError

#: Axes whose units are aggregated block by block, along the sequence and then along the batch.
_BY_BLOCK = (Axis.MLP, Axis.SHARED_MLP, Axis.HEADS)
WORDS = {
    Axis.HIDDEN: "hidden",
    Axis.MLP: "the MLPs",
    Axis.SHARED_MLP: "the shared experts",
    Axis.HEADS: "the heads",
    Axis.HEAD_DIM: "the entries of the heads",
    Axis.EXPERTS: "the experts",
    Axis.EXPERT_MLP: "the neurons of the experts",
    Axis.LAYERS: "the layers",
}


class ActivationListener:
    """Collects the statistics of all width scores and block influences at once, by forward hooks."""

    SUMS = ("covariance", "unfolded", "influences", "norms", "grids", "squares", "experts")
    """Attributes that hold streaming sums; ``all_reduced`` merges those of other processes into them."""

    def __init__(
        self,
        model: PreTrainedModel,
        axis_map: AxisMap,
        aggregations: Collection[Aggregation] = (L2_OF_MEANS,),
        *,
        covariance: bool = True,
    ) -> None:
        self.model, self.axis_map = model, axis_map
        #: Of the width scores, all computed in the same pass; if there are none, no width is measured.
        self.aggregations = tuple(aggregations)
        self.covariance = Covariance()
        #: None: no covariance is collected, which only bases other than coordinates need.
        self._stream = axis_map.stream if covariance else None
        self.unfolded = {name: Covariance() for name in unfolded_norms(axis_map) if covariance}
        self.influences = [BlockInfluence() for _ in range(axis_map.teacher.layers)]
        self.norms = {name: ActivationGrid(self.aggregations) for name in norms(model, axis_map)}
        self.grids: dict[tuple[Axis, int], ActivationGrid] = {}
        self.squares: dict[tuple[Axis, int], SumOfSquares] = {}
        self.experts: dict[int, ExpertSquares] = {}
        self._fixed_experts = not any(tensor.has(Axis.EXPERT_MLP) for tensor in axis_map.tensors)
        self._blocks = (0, 0)

    @contextmanager
    def on(self, included: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
        """Within the context, collect statistics of every batch that the model reads.

        Args:
            included: whether to collect at a module or tensor of this name; by default at all.
        """
        with ExitStack() as stack:
            for handle in self._hooks(included):
                stack.callback(handle.remove)
            if self.aggregations or (self._stream is not None and self._stream.bare):
                stack.enter_context(_experts_one_by_one(self.model))
                stack.enter_context(self._product_tracer(included))
            yield

    def _hooks(self, included: Callable[[str], bool]) -> Iterator[RemovableHandle]:
        if self.aggregations:
            yield from self._norm_hooks(included)
        yield from self._layer_hooks(included)
        if self._stream is not None:
            tensors = tuple(tensor for tensor in self.axis_map.tensors if included(tensor.name))
            included_map = replace(self.axis_map, tensors=tensors)
            yield from norm_inputs(self.model, included_map, self.covariance, self.unfolded)

    def _product_tracer(self, included: Callable[[str], bool]) -> ProductTracer:
        buffers = self.axis_map.buffers
        matrices = [t for t in self.axis_map.tensors if len(t.dimensions) > 1 and t.name not in buffers]
        inner = [matrix for matrix in matrices if matrix.layer is not None and included(matrix.name)]
        return ProductTracer(self.model, inner, self._collect)

    def read(self, tokens: Tensor) -> None:
        """Run the model on (B, T) token ids."""
        self._blocks = (tokens.shape[0], tokens.shape[1])
        final_states(self.model, tokens)

    def _collect(self, read: TracedProduct) -> None:
        tensor, layout = read.tensor, read.tensor.dimensions[read.dimension]
        axes = tensor.axes[read.dimension]
        assert tensor.layer is not None
        stream = self._stream
        if stream is not None and Axis.HIDDEN in axes and wildcard_name(tensor.name) in stream.bare:
            self.covariance.add(read.values, centred=stream.centred)
        if Axis.HIDDEN in axes or isinstance(layout, Concatenated) or not self.aggregations:
            return
        if Axis.EXPERT_MLP in axes or (
            self._fixed_experts and tensor.has(Axis.EXPERTS) and tensor.has(Axis.HIDDEN)
        ):
            self._collect_experts(tensor.layer, read)
            return
        for axis in _BY_BLOCK:
            if axis in axes:
                self._collect_units(axis, tensor.layer, read.values, units_along(layout, axis))
        if Axis.HEAD_DIM in axes:
            entries = read.values.unflatten(-1, (-1, units_along(layout, Axis.HEADS)[1]))
            self._sum(Axis.HEAD_DIM, tensor.layer).add_tokens(entries)

    def _collect_units(self, axis: Axis, layer: int, values: Tensor, row: tuple[int, int]) -> None:
        if row[1] > 1:
            values = torch.linalg.vector_norm(values.unflatten(-1, row), dim=-1, dtype=torch.float32)
        if values[..., 0].numel() != self._blocks[0] * self._blocks[1]:
            raise missing_activations(self.axis_map, f"{WORDS[axis]} of layer {layer}")
        grid = self.grids.setdefault((axis, layer), ActivationGrid(self.aggregations))
        grid.add_blocks(values.reshape(*self._blocks, values.shape[-1]))

    def _collect_experts(self, layer: int, read: TracedProduct) -> None:
        if layer not in self.experts:
            self.experts[layer] = ExpertSquares(self.axis_map.teacher.experts)
        values = read.values
        tokens = values.reshape(read.experts or 1, -1, values.shape[-1])
        self.experts[layer].add(read.first_expert, tokens)

    def _sum(self, axis: Axis, layer: int) -> SumOfSquares:
        return self.squares.setdefault((axis, layer), SumOfSquares())

    def _norm_hooks(self, included: Callable[[str], bool]) -> Iterator[RemovableHandle]:
        hidden = self.axis_map.teacher.hidden
        for name, grid in self.norms.items():
            if not included(name):
                continue

            def outputs(_: nn.Module, __: Any, output: Tensor, grid: ActivationGrid = grid) -> None:
                if (
                    output.numel() == hidden * self._blocks[0] * self._blocks[1]
                    and output.shape[-1] == hidden
                ):
                    grid.add_blocks(output.reshape(*self._blocks, hidden))

            yield self.model.get_submodule(name).register_forward_hook(outputs)

    def _layer_hooks(self, included: Callable[[str], bool]) -> Iterator[RemovableHandle]:
        layers = layer_modules(self.model, self.axis_map)
        for number, (layer, influence) in enumerate(zip(layers, self.influences, strict=True)):
            if not included(f"{self.axis_map.stacks[0]}{number}"):
                continue

            def states(
                _: nn.Module,
                arguments: tuple[Any, ...],
                keywords: dict[str, Any],
                output: Tensor | tuple[Tensor, ...],
                influence: BlockInfluence = influence,
            ) -> None:
                after = output if isinstance(output, Tensor) else output[0]
                inputs = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
                before = next(value for value in inputs if value.shape == after.shape)
                influence.add(before, after)

            yield layer.register_forward_hook(states, with_kwargs=True)


def missing_activations(axis_map: AxisMap, what: str) -> InputError:
    """The error for a teacher whose class computes with an axis in a way that the hooks do not see."""
    return InputError(
        "Every axis of a teacher has to be heard in its forward pass",
        f"in {axis_map.config.model_type!r}, {what} could not be",
        "Choose another teacher with --model",
    )


@contextmanager
def _experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, each expert computes its own matrix products instead of one grouped product."""
    previous = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(previous)


def norms(model: nn.Module, axis_map: AxisMap) -> list[str]:
    """Return the names of the modules that may be norms of the residual stream.

    These are leaf modules whose parameters are all vectors over hidden, or that have no parameters and a
    class name ending in "Norm". The latter may normalise something else; the hook checks the output's shape.
    """
    vectors: dict[str, bool] = {}
    for tensor in axis_map.tensors:
        over_hidden = tensor.axes == (frozenset({Axis.HIDDEN}),) and (
            tensor.dimensions[0].length == axis_map.teacher.hidden
        )
        vectors[tensor.module] = vectors.get(tensor.module, True) and over_hidden
    return [
        name
        for name, module in model.named_modules()
        if next(module.children(), None) is None and vectors.get(name, type(module).__name__.endswith("Norm"))
    ]


def process_share(calibration: Tensor, accelerator: Accelerator | None) -> Tensor:
    """Return this process's (n, T) blocks of (N, T); n may be 0."""
    if accelerator is None:
        return calibration
    return calibration[accelerator.process_index :: accelerator.num_processes]


def all_reduced(listener: ActivationListener, accelerator: Accelerator | None) -> ActivationListener:
    """Merge the sums of all processes into the listener, and return it.

    Args:
        listener: this process's; changed in place.
        accelerator: every process has to call this; None if there is only one process.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return listener
    own = {name: getattr(listener, name) for name in ActivationListener.SUMS}
    total, *others = map(_deserialized, gather_object([_serialized(own)]))
    for other in others:
        total = merged_listeners(total, other)
    for name, sums in total.items():
        setattr(listener, name, sums)
    return listener


def merged_listeners(one: Any, other: Any) -> Any:
    """Merge two processes' sums into those over the blocks of both.

    Args:
        one: a sum with a method ``merge``, or a list or dictionary of sums; it may be changed. Dictionaries
            may lack keys: a process in which no token was routed to an expert has no sum for it.
        other: of the same type.
    """
    if isinstance(one, dict):
        both = {key: merged_listeners(one[key], other[key]) for key in one.keys() & other.keys()}
        return one | other | both
    if isinstance(one, list):
        return [merged_listeners(*pair) for pair in zip(one, other, strict=True)]
    if isinstance(one, Covariance):
        if other.total is not None:
            one.total = other.total if one.total is None else one.total + other.total
            one.tokens += other.tokens
    else:
        one.merge(other)
    return one


def _serialized(sums: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    torch.save(sums, buffer)
    return buffer.getvalue()


def _deserialized(serialized: bytes) -> dict[str, Any]:
    """Load sums onto the CPU. Unpickling is safe here: the bytes come from this run's own processes."""
    sums: dict[str, Any] = torch.load(BytesIO(serialized), map_location="cpu", weights_only=False)
    return sums
