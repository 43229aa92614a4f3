"""How many bytes activations take in training and in forward passes, counted on the model class's own code.

A model is counted with one layer of each kind, and again with one more of a kind; what a layer adds is added
for all others of that kind. Micro-batches of one and of two blocks are counted, and the line through both
holds for all. So the count takes a second, whatever the depth (``live_bytes`` tells how it works).

Fused attention saves queries, keys, values, its output and a number for each row, on the CPU and on GPUs
alike. Compiled blocks and fused losses save less than is counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from evaluators.distillation.efficiency import activation_checkpointing
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.states import layers_of
from evaluators.distillation.targets.batch import Batch, Count, Predictions
from evaluators.distillation.targets.live import teacher_logits
from evaluators.huggingface.final_states import final_states, states_width, token_slice, vocabulary_size
from evaluators.metrics.live_bytes import counted, valueless, valueless_model
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import student_map


@dataclass(frozen=True)
class Depths:
    """A model of few layers, and how often each further layer occurs in the whole."""

    base: AxisMap
    """With one layer of each kind."""
    more: tuple[tuple[AxisMap, int], ...]
    """With one more layer of a kind, and how many more layers of that kind the whole has."""

    @classmethod
    def of(cls, axis_map: AxisMap, architecture: Architecture) -> Depths:
        """Cut a student of an architecture to few layers; it keeps the teacher's first layers."""
        by_kind: dict[int, list[int]] = {}
        for layer, kind in enumerate(axis_map.kinds[: architecture.layers]):
            by_kind.setdefault(kind, []).append(layer)
        firsts = sorted(layers[0] for layers in by_kind.values())

        def cut(layers: Sequence[int]) -> AxisMap:
            return student_map(axis_map, replace(architecture, layers=len(layers)), sorted(layers))

        more = [(cut([*firsts, kind[1]]), len(kind) - 1) for kind in by_kind.values() if kind[1:]]
        return cls(cut(firsts), tuple(more))

    def whole(self, count: Callable[[AxisMap], Sequence[int]]) -> list[int]:
        """Extrapolate counts to all layers.

        Args:
            count: returns some counts of a model with the sizes of the map, each linear in its layers.
        """
        return self.whole_and_layer(count)[0]

    def whole_and_layer(self, count: Callable[[AxisMap], Sequence[int]]) -> tuple[list[int], list[int]]:
        """Extrapolate counts to all layers, and return the most that one layer adds to each."""
        base = list(count(self.base))
        whole, layer = list(base), [0] * len(base)
        for axis_map, others in self.more:
            added = [more - less for more, less in zip(count(axis_map), base, strict=True)]
            whole = [sum_ + others * one for sum_, one in zip(whole, added, strict=True)]
            layer = [max(pair) for pair in zip(layer, added, strict=True)]
        return whole, layer if self.more else base


@dataclass(frozen=True)
class TrainingWork:
    """What a training step computes, but for its model."""

    block: int
    """T, tokens of a block."""
    weights: torch.dtype
    """Of the student."""
    autocast: bool
    """Whether products run in bfloat16 while weights stay as they are."""
    loss: Loss
    eager: bool = False
    """Whether attention stores the weight of every pair of tokens."""
    recompute: bool = False
    """Whether the backward pass recomputes the activations of each layer."""


@dataclass(frozen=True)
class Head:
    """The head that turns the teacher's cached or live final states into logits."""

    config: PretrainedConfig
    """The teacher's, best of few layers."""
    weights: torch.dtype
    states: torch.dtype
    """Of the final states as they come to the loss."""


@dataclass(frozen=True)
class TrainingActivations:
    """The bytes of a micro-batch beside weights, their gradients and optimiser states."""

    one: tuple[int, int]
    """In the forward pass with its loss, and in the backward pass, for a micro-batch of one block."""
    another: tuple[int, int]
    """What each further block adds to both."""
    layer: tuple[int, int]
    """The activations of one layer, for one block and for each further one."""
    tied: int
    """Bytes of an embedding's gradient where the head has one of its own to add it to."""

    def peak(self, micro: int, gradients: int, *, accumulates: bool) -> int:
        """Return the most bytes of a step, its gradients included.

        Args:
            micro: blocks of a micro-batch.
            gradients: bytes of all gradients.
            accumulates: whether a step has several micro-batches, so that from the second on all gradients
                are there throughout. In the first, they grow while activations are freed.
        """
        height = max(one + (micro - 1) * more for one, more in zip(self.one, self.another, strict=True))
        if accumulates:
            return gradients + height
        return max(height, gradients + self.tied + self.layer[0] + (micro - 1) * self.layer[1])


def training_activations(
    axis_map: AxisMap, architecture: Architecture, work: TrainingWork, head: Head | None
) -> TrainingActivations:
    """Count the activations of a training step of a student, its loss included.

    Args:
        axis_map: of the student's teacher.
        architecture: the student's sizes.
        work: what a step computes.
        head: the teacher's; None for sparse targets and for training on text.
    """
    depths = Depths.of(axis_map, architecture)
    teacher = None if head is None else valueless_model(head.config, head.weights)

    def count(axis_map: AxisMap) -> list[int]:
        found = [_step(axis_map.config, blocks, work, head, teacher) for blocks in (1, 2)]
        return [*found[0], *found[1]]

    whole, layer = depths.whole_and_layer(count)
    forward, backward, forward_2, backward_2 = whole
    text = axis_map.config.get_text_config(decoder=True)
    tied = text.vocab_size * architecture.hidden * work.weights.itemsize if text.tie_word_embeddings else 0
    return TrainingActivations(
        (forward, backward),
        (forward_2 - forward, backward_2 - backward),
        (layer[0], layer[2] - layer[0]),
        tied,
    )


def _step(
    config: PretrainedConfig,
    blocks: int,
    work: TrainingWork,
    head: Head | None,
    teacher: PreTrainedModel | None,
) -> tuple[int, int]:
    """Count the height of the forward pass with its loss, and of the backward pass, beside gradients.

    The loss runs over two slices of the tokens: further ones take no more, but for the states' gradient.
    """
    student = valueless_model(config, work.weights)
    if work.eager:
        student.set_attn_implementation("eager")
    distillation = Distillation(student, _Predictions(teacher), work.loss)
    tokens = blocks * work.block
    some = min(tokens, 2 * token_slice(vocabulary_size(student)))
    models = (student,) if teacher is None else (student, teacher)
    with counted(*models) as live, ExitStack() as stack:
        for parameter in student.parameters():
            parameter.grad = valueless(*parameter.shape, dtype=parameter.dtype)
            live.add(parameter.grad)
        gradients = live.now
        batch = Batch(valueless(1, tokens, dtype=torch.long), _targets(head, teacher, tokens))
        for one in (batch.tokens, *batch.targets):
            live.add(one)
        if work.recompute:
            stack.enter_context(activation_checkpointing(layers_of(student)))
        with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
            final = final_states(student, batch.tokens.view(blocks, work.block)).flatten(0, 1)
            rest = (tokens - some) * final.shape[-1] * final.element_size()
            before, live.peak = live.peak, live.now
            part = Batch(batch.tokens[:, :some], tuple(one[:, :some] for one in batch.targets))
            loss = distillation.on_logits(final[None, :some], part, Count(tokens, tokens))
        forward = max(before, live.peak + rest) - gradients
        del final
        torch.clear_autocast_cache()
        live.reset()
        loss.backward()
        return forward, live.peak - gradients


def _targets(head: Head | None, teacher: PreTrainedModel | None, tokens: int) -> tuple[Tensor, ...]:
    if head is None or teacher is None:
        return ()
    return (valueless(1, tokens, states_width(teacher), dtype=head.states),)


@dataclass
class _Predictions:
    """Targets that only turn final states into logits."""

    head_of: PreTrainedModel | None
    blocks: int = 0
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    learnt: Tensor | None = None

    def on_device(self) -> AbstractContextManager[None]:
        return nullcontext()

    def batch(self, numbers: Tensor) -> Batch:
        raise NotImplementedError

    def predictions(self, *targets: Tensor) -> Predictions | None:
        return teacher_logits(self.head_of, targets[0]) if self.head_of is not None else None
