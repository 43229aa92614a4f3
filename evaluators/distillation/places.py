"""Where within a decoder states are compared: behind the embedding, behind a block, behind an attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import decoder
from space.input_error import InputError


class Kind(StrEnum):
    """What made a state."""

    EMBEDDING = "embedding"
    """What the first block is given."""
    BLOCK = "block"
    ATTENTION = "attention"
    """Before it is added to the stream."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a (B, T, D) state is taken.

    Attributes:
        kind: what made it.
        layer: its number, from 0; of the embedding 0.
    """

    kind: Kind
    layer: int = 0

    def __str__(self) -> str:
        return f"{self.kind}" if self.kind is Kind.EMBEDDING else f"{self.kind}-{self.layer}"


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
def states_at(model: PreTrainedModel, places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
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


def _listen(layer: nn.Module, place: Place, found: dict[str, Tensor]) -> Any:
    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = (*given, *named.values())
        found[str(place)] = next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        found[str(place)] = output if isinstance(output, Tensor) else output[0]

    if place.kind is Kind.EMBEDDING:
        return layer.register_forward_pre_hook(before, with_kwargs=True)
    return (layer if place.kind is Kind.BLOCK else _attention(layer)).register_forward_hook(after)


def _attention(layer: nn.Module) -> nn.Module:
    for part in layer.modules():
        if "attention" in type(part).__name__.lower() and part is not layer:
            return part
    raise InputError(
        "An attention whose output is compared has to be a module of its block",
        f"{type(layer).__name__} has none",
        "Compare blocks instead",
    )
