"""Choose the teacher: one that the user named, or the smallest known one that is large enough for the budget.

Of several teachers the nearest in size above the budget is used, since it gives the best student (arXiv
2407.14679, section 4.1, practice 8). If the user names several checkpoints of one training, all are recorded
and the last is the teacher, because pruning works best after the last training phase (practice 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig

from evaluators.teacher import has_chat_template, load_config
from space.axes.axis_map import build
from space.counting.budget import Budget, BudgetText, Measure, format_amount
from space.input_error import InputError

#: The small teacher that ships with the project.
EMBEDDED = Path(__file__).parents[2] / "studies" / "demo" / "teacher"
EMBEDDED_PARAMETERS = 1_837_184
STANDARD_LIBRARY, OPEN_CORPUS = "stdlib", "HuggingFaceFW/fineweb-edu"
#: For a teacher of conversations: text of the kind that it was pre-trained on, and conversations, in the
#: shares by which NVIDIA distils its own such models (30 to 70).
OPEN_MIXTURE = (f"{OPEN_CORPUS}=0.3", "HuggingFaceTB/smoltalk:all=0.7")
#: A known teacher is chosen only if it has at least this many times the parameters of the budget.
_MARGIN = 1.25


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher that can be chosen by the budget alone."""

    id: str
    parameters: int
    """Parameters, with tied weights counted once."""
    tokens: int
    """Tokens of pretraining, from the training log of the embedded teacher, the model cards of SmolLM2, and
    arXiv 2505.09388 for Qwen3."""


LADDER = (
    KnownTeacher(str(EMBEDDED), EMBEDDED_PARAMETERS, 11_497_472),
    KnownTeacher("HuggingFaceTB/SmolLM2-135M", 134_515_008, 2 * 10**12),
    KnownTeacher("HuggingFaceTB/SmolLM2-360M", 361_821_120, 4 * 10**12),
    KnownTeacher("Qwen/Qwen3-0.6B", 596_049_920, 36 * 10**12),
    KnownTeacher("Qwen/Qwen3-1.7B", 1_720_574_976, 36 * 10**12),
    KnownTeacher("Qwen/Qwen3-4B", 4_022_468_096, 36 * 10**12),
    KnownTeacher("Qwen/Qwen3-8B", 8_190_735_360, 36 * 10**12),
    KnownTeacher("Qwen/Qwen3-14B", 14_768_307_200, 36 * 10**12),
    KnownTeacher("Qwen/Qwen3-32B", 32_762_123_264, 36 * 10**12),
)


def teacher_for(budget: BudgetText, of: Measure = Measure.TOTAL) -> str:
    """Return the smallest known teacher of at least 1.25 times the budget; the embedded one for a percentage.

    Raises:
        InputError: the budget is too large for every known teacher, or is an amount of bytes.
    """
    if budget.relative:
        return LADDER[0].id
    if of.in_bytes:
        raise InputError(
            "A budget in bytes needs a teacher that is named",
            f"{format_amount(budget.amount, of)} of {of} was asked, and no --model",
            "Name the teacher with --model, or write the budget in parameters or as a percentage",
        )
    for known in LADDER:
        if known.parameters >= _MARGIN * budget.amount:
            return known.id
    largest = LADDER[-1]
    raise InputError(
        f"A known teacher has to have at least {_MARGIN} times the parameters of the budget",
        f"{format_amount(budget.amount)} was asked, and the largest, {largest.id}, has "
        f"{format_amount(largest.parameters)}",
        "Name a larger teacher with --model",
    )


def training_tokens(teacher: str) -> int | None:
    """Return the pretraining tokens of a known teacher; None for other models."""
    known = {known.id: known.tokens for known in LADDER}
    return known.get(LADDER[0].id if _is_embedded(teacher) else teacher)


def default_texts(teacher: str, revision: str | None = None) -> tuple[str, ...]:
    """Return the texts that are used for distillation when the user names none.

    Raises:
        InputError: the hub does not tell whether the teacher has a chat template.
    """
    if _is_embedded(teacher):
        return (STANDARD_LIBRARY,)
    return OPEN_MIXTURE if has_chat_template(teacher, revision) else (OPEN_CORPUS,)


def short_name(teacher: str) -> str:
    """Return the last part of a teacher's id, for names of runs."""
    return "demo" if _is_embedded(teacher) else Path(teacher).resolve().name or "teacher"


def _is_embedded(teacher: str) -> bool:
    return Path(teacher).resolve() == EMBEDDED.resolve()


Shapes = dict[str, tuple[int, ...]]


class TrainingPhase(NamedTuple):
    """One checkpoint of a training."""

    id: str
    """A directory or a hub id."""
    revision: str | None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


class Training(NamedTuple):
    """The checkpoints of one training, which have the same architecture."""

    phases: tuple[TrainingPhase, ...]
    """Checkpoints in training order; the last is the teacher."""
    config: PretrainedConfig
    """Config of the last checkpoint."""


def training_phases(models: Sequence[str], revisions: Sequence[str]) -> list[TrainingPhase]:
    """Combine ``--model`` and ``--revision`` into checkpoints: several models, or several revisions of one.

    Args:
        models: directories or hub ids, at least one.
        revisions: revisions on the hub, possibly none.

    Raises:
        InputError: revisions are given for several models, or a checkpoint is named twice.
    """
    if len(models) > 1 and revisions:
        raise InputError(
            "Checkpoints of one training are several models or several revisions of one",
            f"{len(models)} models and {len(revisions)} revisions were given",
            "Leave --revision out, or name one --model",
        )
    phases = [TrainingPhase(model, revision) for model in models for revision in revisions or (None,)]
    twice = next((phase for place, phase in enumerate(phases) if phase in phases[:place]), None)
    if twice is not None:
        raise InputError(
            "Checkpoints of one training are named in its order, each once",
            f"{twice} was given twice",
            "Leave one out",
        )
    return phases


def trainings_of(phases: Sequence[TrainingPhase], trust_remote_code: bool) -> list[Training]:
    """Group checkpoints by architecture, keeping their order within each group.

    Raises:
        InputError: a checkpoint cannot be a teacher, or revisions of one model differ in architecture.
    """
    configs = [load_config(*phase, trust_remote_code) for phase in phases]
    if len(configs) == 1:
        return [Training(tuple(phases), configs[0])]
    shapes = [_shapes(config) for config in configs]
    groups: list[list[int]] = []
    for place, config in enumerate(configs):
        for group in groups:
            if type(configs[group[0]]) is type(config) and shapes[group[0]] == shapes[place]:
                group.append(place)
                break
        else:
            groups.append([place])
    if len(groups) > 1 and len({phase.id for phase in phases}) == 1:
        one, other = groups[0][-1], groups[-1][-1]
        different = _difference(configs[one], configs[other], shapes[one], shapes[other])
        raise InputError(
            "Revisions of one model are checkpoints of one training, and have one architecture",
            f"{phases[one]} has {different[0]}, and {phases[other]} has {different[1]}",
            "Name revisions of the same training, the last one last",
        )
    return [Training(tuple(phases[place] for place in group), configs[group[-1]]) for group in groups]


def _difference(
    one: PretrainedConfig, other: PretrainedConfig, shapes: Shapes, others: Shapes
) -> tuple[str, str]:
    """Describe the first difference between two models: their class, or the shape of a tensor."""
    if type(one) is not type(other):
        return f"the type {one.model_type}", f"the type {other.model_type}"
    names = sorted(shapes.keys() | others.keys())
    name = next(name for name in names if shapes.get(name) != others.get(name))
    return _tensor_in_words(name, shapes), _tensor_in_words(name, others)


def _shapes(config: PretrainedConfig) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in build(config).named_parameters()}


def _tensor_in_words(name: str, shapes: Shapes) -> str:
    return f"{name} of {' × '.join(map(str, shapes[name]))}" if name in shapes else f"no {name}"


@dataclass(frozen=True)
class AvailableTeacher:
    """A teacher that could be used, with its size."""

    training: Training
    amount: int
    """Size of the teacher in the measure of the budget: parameters or bytes."""

    @property
    def phase(self) -> TrainingPhase:
        """The checkpoint that would be pruned: the last one."""
        return self.training.phases[-1]


def smallest_above(teachers: Sequence[AvailableTeacher], budget: Budget) -> AvailableTeacher:
    """Return the smallest teacher that is larger than the budget with its tolerance; the first of equal ones.

    Raises:
        InputError: no teacher is.
    """
    above = [one for one in teachers if one.amount > budget.highest]
    if not above:
        raise InputError(
            "A budget has to lie below one of the teachers at hand",
            f"{budget} was asked, and {teachers_in_words(teachers, budget)} were named",
            "Name a larger model with --model, or ask for less with --budget",
        )
    return min(above, key=lambda one: one.amount)


def teachers_in_words(teachers: Sequence[AvailableTeacher], budget: Budget) -> str:
    """List teachers with their sizes in the budget's measure, the largest first."""
    ordered = sorted(teachers, key=lambda one: -one.amount)
    return ", ".join(f"{one.phase} ({format_amount(one.amount, budget.of)})" for one in ordered)
