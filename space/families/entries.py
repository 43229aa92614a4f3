"""The entries: config fields that follow a size without any shape showing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from space.architecture import Axis


@dataclass(frozen=True)
class Entry:
    """What is known of a model type beyond what its class shows."""

    alike: Mapping[Axis, tuple[str, ...]] = field(default_factory=dict)
    """Fields that are set to an axis's size with its own field, if the teacher has them so."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Fields that grow with a power of a size, so that the function stays the same."""


ENTRIES: dict[str, Entry] = {
    # The embedding table may be narrower than the stream; if it is not, it stays so.
    "opt": Entry(alike={Axis.HIDDEN: ("word_embed_proj_dim",)}),
    # Residual branches are multiplied by scale_depth / √layers.
    "minicpm3": Entry(rescaled={"scale_depth": (Axis.LAYERS, 0.5)}),
}


def entry_of(model_type: str) -> Entry:
    """The entry of a type; most have none."""
    return ENTRIES.get(model_type, Entry())
