"""Intermediate states: where they are, and how the student's are drawn to the teacher's.

Worth it where layers are cut hard (arXiv 2407.14679, section 3 and table 17); ``studies/distillation`` has
what it is worth here.
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
    """What made a state."""

    EMBEDDING = "embedding"
    """What the first block is given."""
    BLOCK = "block"
    ATTENTION = "attention"
    """Before it is added to the stream."""


@dataclass(frozen=True, order=True)
class StatePlace:
    """Where a (B, T, D) state is taken.

    Attributes:
        kind: what made it.
        layer: its number, from 0; of the embedding 0.
    """

    kind: StateKind
    layer: int = 0

    def __str__(self) -> str:
        return f"{self.kind}" if self.kind is StateKind.EMBEDDING else f"{self.kind}-{self.layer}"


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a decoder, first to last.

    Raises:
        InputError: the class keeps them in no list of its own.
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
    """Within the context every forward pass leaves its (B, T, D) states here, by the name of their place.

    Args:
        model: a decoder.
        places: any number; none costs nothing.

    Raises:
        InputError: a place is not in this class.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        layers = layers_of(model) if places else []
        for place in places:
            stack.callback(_listen(layers[place.layer], place, found).remove)
        yield found


def _listen(layer: nn.Module, place: StatePlace, found: dict[str, Tensor]) -> Any:
    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = (*given, *named.values())
        found[str(place)] = next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        found[str(place)] = output if isinstance(output, Tensor) else output[0]

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
    """How states are compared."""

    COSINE = "cosine"
    """One minus the cosine."""
    MSE = "mse"
    """Squared difference, mean over the teacher's width, over the mean square of the teacher's state."""


@dataclass(frozen=True)
class StatePair:
    """A place in the student and the one in the teacher that it is compared to."""

    student: StatePlace
    teacher: StatePlace


@dataclass(frozen=True)
class States:
    """Which states are compared, and how.

    Attributes:
        pairs: at least one.
        by: the measure.
    """

    pairs: tuple[StatePair, ...]
    by: StateDistance = StateDistance.COSINE

    @property
    def of_student(self) -> list[StatePlace]:
        """Where the student is listened to."""
        return [pair.student for pair in self.pairs]

    @property
    def of_teacher(self) -> list[StatePlace]:
        """Where the teacher is listened to."""
        return [pair.teacher for pair in self.pairs]


def late_block(student_layers: int, teacher_layers: int) -> StatePair:
    """The last block but two of both (arXiv 2407.14679, appendix A)."""
    return StatePair(
        StatePlace(StateKind.BLOCK, max(0, student_layers - 3)),
        StatePlace(StateKind.BLOCK, max(0, teacher_layers - 3)),
    )


def embedding() -> StatePair:
    """What the first block is given, in both."""
    return StatePair(StatePlace(StateKind.EMBEDDING), StatePlace(StateKind.EMBEDDING))


def late_attention(student_layers: int, teacher_layers: int) -> StatePair:
    """The attention of the last block but two of both."""
    pair = late_block(student_layers, teacher_layers)
    return StatePair(
        StatePlace(StateKind.ATTENTION, pair.student.layer),
        StatePlace(StateKind.ATTENTION, pair.teacher.layer),
    )


class StatesLoss(nn.Module):
    """The learned linear maps of all pairs, from the student's width to the teacher's, and the loss.

    The maps are trained with the student and thrown away with this module.
    """

    def __init__(self, states: States, student_width: int, teacher_width: int) -> None:
        """Begin with maps that hand on what both have: the first dimensions.

        Args:
            states: which are compared.
            student_width: d.
            teacher_width: D.
        """
        super().__init__()
        self.states = states
        maps = [nn.Linear(student_width, teacher_width, bias=False) for _ in states.pairs]
        for one in maps:
            nn.init.eye_(one.weight)
        self.maps = nn.ModuleList(maps)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """The sum over tokens of the mean over pairs.

        Args:
            student: (B, T, d) by place.
            teacher: (B, T, D) by place.
            mask: (B, T) bool, which tokens count.
        """
        terms = [
            (self._apart(one(student[str(pair.student)]), teacher[str(pair.teacher)]) * mask).sum()
            for pair, one in zip(self.states.pairs, self.maps, strict=True)
        ]
        return torch.stack(terms).mean()

    def _apart(self, mapped: Tensor, wanted: Tensor) -> Tensor:
        mapped, wanted = mapped.float(), wanted.float()
        if self.states.by is StateDistance.COSINE:
            return 1 - nn.functional.cosine_similarity(mapped, wanted, dim=-1)
        return (mapped - wanted).square().mean(dim=-1) / wanted.square().mean(dim=-1).clamp(min=1e-12)


def states_named(names: Sequence[str], student_layers: int, teacher_layers: int) -> States | None:
    """The pairs with these names out of ``late``, ``embedding`` and ``attention``; None without any."""
    known = {
        "late": late_block(student_layers, teacher_layers),
        "embedding": embedding(),
        "attention": late_attention(student_layers, teacher_layers),
    }
    return States(tuple(known[name] for name in names)) if names else None
