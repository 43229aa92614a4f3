"""Intermediate states: where they are taken, and the loss between the student's and the teacher's.

This loss helps when many layers are removed (arXiv 2407.14679, section 3 and table 17);
``studies/distillation`` measures its benefit here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import decoder
from space.input_error import InputError


class StateKind(StrEnum):
    """What a state is the input or output of."""

    EMBEDDING = "embedding"
    """The input of the first block."""
    BLOCK = "block"
    ATTENTION = "attention"
    """The output of the attention, before it is added to the residual stream."""


@dataclass(frozen=True, order=True)
class StatePlace:
    """Where a (B, T, D) state is taken.

    Attributes:
        kind: embedding, block or attention.
        layer: number of the layer, from 0; 0 for the embedding.
    """

    kind: StateKind
    layer: int = 0

    def __str__(self) -> str:
        return f"{self.kind}" if self.kind is StateKind.EMBEDDING else f"{self.kind}-{self.layer}"


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks of a decoder, first to last.

    Raises:
        InputError: the class keeps its blocks in no ``ModuleList`` of their own.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [part for part in decoder(model).modules() if isinstance(part, nn.ModuleList)]
    for one in lists:
        if len(one) == count:
            return list(one)
    raise InputError(
        "The blocks of a model have to lie in one list, for its states to be compared",
        f"{model.config.model_type!r} has no list of {count}",
        "Compare logits alone: leave --states out",
    )


@contextmanager
def states_at(model: PreTrainedModel, places: Sequence[StatePlace]) -> Iterator[dict[str, Tensor]]:
    """Within the context, collect the (B, T, D) states of each forward pass by the name of their place.

    Args:
        model: a decoder.
        places: where to take states; without any there is no cost.

    Raises:
        InputError: the class has no such place.
    """
    states: dict[str, Tensor] = {}
    with ExitStack() as stack:
        layers = layers_of(model) if places else []
        for place in places:
            stack.callback(_register_hook(layers[place.layer], place, states).remove)
        yield states


def _register_hook(layer: nn.Module, place: StatePlace, states: dict[str, Tensor]) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        states[str(place)] = next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        states[str(place)] = output if isinstance(output, Tensor) else output[0]

    if place.kind is StateKind.EMBEDDING:
        return layer.register_forward_pre_hook(before, with_kwargs=True)
    return (layer if place.kind is StateKind.BLOCK else _attention(layer)).register_forward_hook(after)


def _attention(layer: nn.Module) -> nn.Module:
    for part in layer.modules():
        if "attention" in type(part).__name__.lower() and part is not layer:
            return part
    raise InputError(
        "An attention whose output is compared has to be a module of its block",
        f"{type(layer).__name__} has none",
        "Compare blocks instead",
    )


class StateDistance(StrEnum):
    """The distance between two states."""

    COSINE = "cosine"
    """One minus the cosine similarity."""
    MSE = "mse"
    """Mean squared difference over the teacher's width, divided by the mean square of the teacher's state."""


@dataclass(frozen=True)
class StatePair:
    """A place in the student and the place in the teacher that it is compared with."""

    student: StatePlace
    teacher: StatePlace


@dataclass(frozen=True)
class States:
    """Which states are compared, and by which distance.

    Attributes:
        pairs: one or more pairs of places.
        by: the distance.
    """

    pairs: tuple[StatePair, ...]
    by: StateDistance = StateDistance.COSINE

    @property
    def of_student(self) -> list[StatePlace]:
        """The student's places."""
        return [pair.student for pair in self.pairs]

    @property
    def of_teacher(self) -> list[StatePlace]:
        """The teacher's places."""
        return [pair.teacher for pair in self.pairs]


def late_block(student_layers: int, teacher_layers: int) -> StatePair:
    """Return the pair of the third-last blocks (arXiv 2407.14679, appendix A)."""
    return StatePair(
        StatePlace(StateKind.BLOCK, max(0, student_layers - 3)),
        StatePlace(StateKind.BLOCK, max(0, teacher_layers - 3)),
    )


def embedding() -> StatePair:
    """Return the pair of the first blocks' inputs."""
    return StatePair(StatePlace(StateKind.EMBEDDING), StatePlace(StateKind.EMBEDDING))


def late_attention(student_layers: int, teacher_layers: int) -> StatePair:
    """Return the pair of the attention outputs in the third-last blocks."""
    pair = late_block(student_layers, teacher_layers)
    return StatePair(
        StatePlace(StateKind.ATTENTION, pair.student.layer),
        StatePlace(StateKind.ATTENTION, pair.teacher.layer),
    )


class StatesLoss(nn.Module):
    """The loss on states, with one learned linear map per pair from the student's width to the teacher's.

    The maps are trained with the student, and discarded with this module.
    """

    def __init__(self, states: States, student_width: int, teacher_width: int) -> None:
        """Initialise the maps to the identity on the first dimensions, which both have.

        Args:
            states: the pairs and their distance.
            student_width: d.
            teacher_width: D.
        """
        super().__init__()
        self.states = states
        maps = [nn.Linear(student_width, teacher_width, bias=False) for _ in states.pairs]
        for linear in maps:
            nn.init.eye_(linear.weight)
        self.maps = nn.ModuleList(maps)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the distance averaged over pairs and summed over tokens.

        Args:
            student: states (B, T, d) by the name of their place.
            teacher: states (B, T, D) by the name of their place.
            mask: (B, T) bool, True for the tokens that count.
        """
        terms = [
            (self._distance(linear(student[str(pair.student)]), teacher[str(pair.teacher)]) * mask).sum()
            for pair, linear in zip(self.states.pairs, self.maps, strict=True)
        ]
        return torch.stack(terms).mean()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student.float(), teacher.float()
        if self.states.by is StateDistance.COSINE:
            return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)
        return (student - teacher).square().mean(dim=-1) / teacher.square().mean(dim=-1).clamp(min=1e-12)


def states_named(names: Sequence[str], student_layers: int, teacher_layers: int) -> States | None:
    """Return the pairs named ``late``, ``embedding`` or ``attention``; None without names."""
    known = {
        "late": late_block(student_layers, teacher_layers),
        "embedding": embedding(),
        "attention": late_attention(student_layers, teacher_layers),
    }
    return States(tuple(known[name] for name in names)) if names else None
