"""Checkpoints of one training, in its order: the last is the teacher, all are recorded.

Teachers that were trained in phases are best cut after the last (arXiv 2407.14679, section 4.1, practice 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from evaluators.teacher import load_config
from space.axis_map import build
from space.input_error import InputError


class Phase(NamedTuple):
    """One checkpoint."""

    id: str
    """A directory or a hub id."""
    revision: str | None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def phases_of(models: Sequence[str], revisions: Sequence[str]) -> list[Phase]:
    """Several models, or several revisions of one model.

    Args:
        models: at least one.
        revisions: any number.

    Raises:
        InputError: both are several, or one is named twice.
    """
    if len(models) > 1 and revisions:
        raise InputError(
            "Checkpoints of one training are several models or several revisions of one",
            f"{len(models)} models and {len(revisions)} revisions were given",
            "Leave --revision out, or name one --model",
        )
    phases = [Phase(model, revision) for model in models for revision in revisions or (None,)]
    twice = next((phase for place, phase in enumerate(phases) if phase in phases[:place]), None)
    if twice is not None:
        raise InputError(
            "Checkpoints of one training are named in its order, each once",
            f"{twice} was given twice",
            "Leave one out",
        )
    return phases


def last_phase(phases: Sequence[Phase], trust_remote_code: bool) -> PretrainedConfig:
    """The config of the last one; those before it have to have its class and its sizes.

    Raises:
        InputError: one cannot be a teacher, or differs.
    """
    *before, last = [load_config(*phase, trust_remote_code) for phase in phases]
    for phase, config in zip(phases, before, strict=False):
        apart = _apart(config, last)
        if apart:
            raise InputError(
                "Checkpoints of one training have one architecture",
                f"{phase} has {apart[0]}, and {phases[-1]} has {apart[1]}",
                "Name checkpoints of the same training, the last one last",
            )
    return last


def _apart(one: PretrainedConfig, other: PretrainedConfig) -> tuple[str, str] | None:
    """The first in which two models differ, class or a tensor's shape, in words; None if they are alike."""
    if type(one) is not type(other):
        return f"the type {one.model_type}", f"the type {other.model_type}"
    shapes, others = _shapes(one), _shapes(other)
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            return _tensor(name, shapes), _tensor(name, others)
    return None


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in build(config).named_parameters()}


def _tensor(name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    return f"{name} of {' × '.join(map(str, shapes[name]))}" if name in shapes else f"no {name}"
