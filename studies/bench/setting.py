"""The teachers that the studies prune, each with its text and the sizes of its students."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from space.axes.architecture import Axis

_STUDIES = Path(__file__).parents[1]
_REAL = Path(os.environ.get("SLIMSEARCH_REAL", _STUDIES.parents[0] / ".." / "shared" / "real"))
#: Tokens of an optimiser step, in all studies.
STEP_TOKENS = 2048


@dataclass(frozen=True)
class Setting:
    """One teacher, its text and the widths that its students keep."""

    name: str
    teacher: Path
    data: str
    block: int
    """Tokens a block."""
    widths: Mapping[Axis, int]
    """Of width-pruned students."""
    layers: int
    """Of depth-pruned students."""
    precision: str
    """Of training, as Accelerate names it."""
    others: Mapping[str, Mapping[Axis, int]] = field(default_factory=dict)
    """More students, by name."""


STORIES = Setting(
    "stories260K",
    _REAL / "stories260K",
    str(_REAL / "tinystories.txt"),
    512,
    {Axis.HIDDEN: 48, Axis.MLP: 112},
    3,
    "no",
    {
        "mild": {Axis.HIDDEN: 56, Axis.MLP: 144},
        "deep": {Axis.HIDDEN: 32, Axis.MLP: 80},
        "heads": {Axis.HIDDEN: 48, Axis.MLP: 112, Axis.HEADS: 4, Axis.KV_HEADS: 4},
    },
)
EMBEDDED = Setting(
    "embedded",
    _STUDIES / "demo" / "teacher",
    "stdlib",
    256,
    {Axis.HIDDEN: 80, Axis.MLP: 240},
    5,
    "bf16",
    {
        "mild": {Axis.HIDDEN: 104, Axis.MLP: 304},
        "deep": {Axis.HIDDEN: 56, Axis.MLP: 160},
        "heads": {Axis.HIDDEN: 80, Axis.MLP: 240, Axis.HEADS: 4, Axis.KV_HEADS: 4},
    },
)
#: Made by ``make_smollm2.py`` beside the text; too large for the studies that train hundreds of students.
SMOLLM2 = Setting(
    "SmolLM2-135M-Instruct",
    Path(os.environ.get("SLIMSEARCH_SMOLLM2", _REAL / "smollm2")),
    str(_REAL / "books.jsonl"),
    512,
    {Axis.HIDDEN: 432, Axis.MLP: 1152},
    22,
    "bf16",
)
SETTINGS = {setting.name: setting for setting in (STORIES, EMBEDDED)}
