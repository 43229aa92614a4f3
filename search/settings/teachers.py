"""Which teacher a budget is cut from when the user names none: the smallest that is large enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from space.counting.budget import BudgetText, Measure, spoken
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
            f"{spoken(budget.amount, of)} of {of} was asked, and no --model",
            "Name the teacher with --model, or write the budget in parameters or as a percentage",
        )
    for known in LADDER:
        if known.parameters >= _MARGIN * budget.amount:
            return known.id
    largest = LADDER[-1]
    raise InputError(
        f"A known teacher has to have at least {_MARGIN} times the parameters of the budget",
        f"{spoken(budget.amount)} was asked, and the largest, {largest.id}, has {spoken(largest.parameters)}",
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
