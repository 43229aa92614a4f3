"""What a search makes small: the objectives by name, with their units."""

from __future__ import annotations

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
