"""Models named as teachers: checkpoints of one training, in its order, or trainings of several sizes.

Of one training the last checkpoint is the teacher and all are recorded: teachers that were trained in phases
are best cut after the last (arXiv 2407.14679, section 4.1, practice 10). Which training serves a budget,
``search.settings.nearest`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from evaluators.teacher import load_config
from space.axes.axis_map import build
from space.input_error import InputError

Shapes = dict[str, tuple[int, ...]]


class Phase(NamedTuple):
    """One checkpoint."""

    id: str
    """A directory or a hub id."""
    revision: str | None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


class Training(NamedTuple):
    """Checkpoints of one architecture."""

    phases: tuple[Phase, ...]
    """In its order; the last is the teacher."""
    config: PretrainedConfig
    """Of the last."""


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


def trainings_of(phases: Sequence[Phase], trust_remote_code: bool) -> list[Training]:
    """What was named, sorted by architecture: of each the checkpoints in the order in which they were named.

    Raises:
        InputError: one cannot be a teacher, or revisions of one model differ in architecture.
    """
    configs = [load_config(*phase, trust_remote_code) for phase in phases]
    if len(configs) == 1:
        return [Training(tuple(phases), configs[0])]
    shapes = [_shapes(config) for config in configs]
    found: list[list[int]] = []
    for place, config in enumerate(configs):
        for group in found:
            if type(configs[group[0]]) is type(config) and shapes[group[0]] == shapes[place]:
                group.append(place)
                break
        else:
            found.append([place])
    if len(found) > 1 and len({phase.id for phase in phases}) == 1:
        one, other = found[0][-1], found[-1][-1]
        apart = _apart(configs[one], configs[other], shapes[one], shapes[other])
        raise InputError(
            "Revisions of one model are checkpoints of one training, and have one architecture",
            f"{phases[one]} has {apart[0]}, and {phases[other]} has {apart[1]}",
            "Name revisions of the same training, the last one last",
        )
    return [Training(tuple(phases[place] for place in group), configs[group[-1]]) for group in found]


def _apart(one: PretrainedConfig, other: PretrainedConfig, shapes: Shapes, others: Shapes) -> tuple[str, str]:
    """The first in which two models differ, class or a tensor's shape, in words."""
    if type(one) is not type(other):
        return f"the type {one.model_type}", f"the type {other.model_type}"
    names = sorted(shapes.keys() | others.keys())
    name = next(name for name in names if shapes.get(name) != others.get(name))
    return _tensor(name, shapes), _tensor(name, others)


def _shapes(config: PretrainedConfig) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in build(config).named_parameters()}


def _tensor(name: str, shapes: Shapes) -> str:
    return f"{name} of {' × '.join(map(str, shapes[name]))}" if name in shapes else f"no {name}"
