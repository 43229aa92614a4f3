"""What a search makes small: the objectives by name, with their units."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from space.input_error import InputError

#: Name to unit; all are minimised.
UNITS = {
    "loss": "nats per token",
    "latency": "ms",
    "parameters": "parameters",
    "memory": "bytes",
    "flops": "FLOPs per token",
}


_DEFAULT = ("loss", "latency")


def objectives_of(text: str | None, bounded: Collection[str]) -> tuple[str, ...]:
    """What the user asked to make small; by default loss and latency, without what is bounded.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    if text is None:
        return tuple(name for name in _DEFAULT if name not in bounded)
    return parse_objectives(text)


def parse_objectives(text: str) -> tuple[str, ...]:
    """Read names separated by commas.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in UNITS:
            near = get_close_matches(name, UNITS, n=1)
            raise InputError(
                f"Objectives are {', '.join(UNITS)}",
                f"{name!r} is none of them",
                f"Did you mean {near[0]!r}" if near else "Choose from these",
            )
    if len(set(names)) != len(names) or "loss" not in names:
        raise InputError(
            "Objectives have to name loss, and each objective once",
            f"{text!r} does not",
            "Try --objectives loss,latency",
        )
    return names
