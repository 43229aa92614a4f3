"""Which teacher a budget is cut from: one that the user named, or the smallest known that is large enough.

Of one training the last checkpoint is the teacher and all are recorded: teachers that were trained in phases
are best cut after the last (arXiv 2407.14679, section 4.1, practice 10). Which training serves a budget,
``search.settings.teachers`` says.

The nearer in size the teacher, the better the student (arXiv 2407.14679, section 4.1, practice 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig

from evaluators.teacher import load_config
from space.axes.axis_map import build
from space.counting.budget import Budget, BudgetText, Measure, format_amount
from space.input_error import InputError

#: The teacher that ships with the project.
EMBEDDED = Path(__file__).parents[2] / "studies" / "demo" / "teacher"
EMBEDDED_PARAMETERS = 1_837_184
STANDARD_LIBRARY, OPEN_CORPUS = "stdlib", "HuggingFaceFW/fineweb-edu"
#: A student is cut from a teacher of at least this many times its size.
_MARGIN = 1.25


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher that a budget can pick."""

    id: str
    parameters: int
    """Tied weights counted once."""
    tokens: int
    """It was trained on before anybody tuned it: the embedded one as its log says, SmolLM2 as on its cards,
    Qwen3 as in arXiv 2505.09388."""


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
    """The smallest known teacher of at least 1.25 times the budget; the embedded one for a percentage.

    Raises:
        InputError: the budget is too large for every known teacher, or is memory.
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
    """Tokens that a known teacher was trained on; None of others."""
    known = {known.id: known.tokens for known in LADDER}
    return known.get(LADDER[0].id if _is_embedded(teacher) else teacher)


def default_text(teacher: str) -> str:
    """The text that a teacher is distilled on when the user names none."""
    return STANDARD_LIBRARY if _is_embedded(teacher) else OPEN_CORPUS


def short_name(teacher: str) -> str:
    """The last part of a teacher's id, for names of runs."""
    return "demo" if _is_embedded(teacher) else Path(teacher).resolve().name or "teacher"


def _is_embedded(teacher: str) -> bool:
    return Path(teacher).resolve() == EMBEDDED.resolve()


Shapes = dict[str, tuple[int, ...]]


class TrainingPhase(NamedTuple):
    """One checkpoint."""

    id: str
    """A directory or a hub id."""
    revision: str | None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


class Training(NamedTuple):
    """Checkpoints of one architecture."""

    phases: tuple[TrainingPhase, ...]
    """In its order; the last is the teacher."""
    config: PretrainedConfig
    """Of the last."""


def training_phases(models: Sequence[str], revisions: Sequence[str]) -> list[TrainingPhase]:
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


@dataclass(frozen=True)
class AvailableTeacher:
    """A teacher that could be taken."""

    training: Training
    amount: int
    """What it has of what the budget measures."""

    @property
    def phase(self) -> TrainingPhase:
        """The checkpoint that would be cut."""
        return self.training.phases[-1]


def smallest_above(teachers: Sequence[AvailableTeacher], budget: Budget) -> AvailableTeacher:
    """The smallest of the teachers above the budget's band; of equal ones the first.

    Raises:
        InputError: none is above it.
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
    """Teachers with their sizes in the budget's measure, the largest first."""
    ordered = sorted(teachers, key=lambda one: -one.amount)
    return ", ".join(f"{one.phase} ({format_amount(one.amount, budget.of)})" for one in ordered)
