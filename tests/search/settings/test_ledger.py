"""Placements, optimisers and refusals that follow from what stages need and what there is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from evaluators.distillation.optimizers import OptimizerName
from evaluators.metrics.capacity import Capacity
from evaluators.metrics.memory import StageNeeds
from search.settings import ledger
from search.settings.ledger import MARGIN, choose
from search.settings.memory_table import memory_lines, memory_rows
from search.settings.placement import STAYS, Placement
from space.input_error import InputError

ADAMW, EIGHT = OptimizerName.ADAMW, OptimizerName.ADAMW_8BIT
GB = 10**9


@dataclass(frozen=True)
class Known:
    """Needs of one stage in whole GB: a teacher of 16, a student of 64 or 24, and 10 for each block."""

    def certainly_below(self, bytes: int) -> bool:
        return False

    def least(self, placement: Placement, optimizer: OptimizerName) -> int:
        return 0

    @property
    def sizes(self) -> Known:
        return self

    def micro_batch(self, placement: Placement) -> int:
        return placement.micro_batch or 4

    def of(self, placement: Placement, optimizer: OptimizerName) -> list[StageNeeds]:
        device = {
            "teacher": 16 * GB if placement.teacher_stays else 0,
            "sorted weights": 16 * GB if placement.sorted_stay else 0,
            "weights": 64 * GB if optimizer is ADAMW else 24 * GB,
            "activations": self.micro_batch(placement) * (GB if placement.recompute else 10 * GB),
        }
        host = {"teacher": 0 if placement.teacher_stays else 16 * GB}
        return [StageNeeds("distillation", device, host)]


AWAY = Placement(teacher_stays=False, sorted_stay=False)


@pytest.mark.parametrize(
    ("there", "placement", "optimizer"),
    [
        (136, STAYS, ADAMW),
        (120, Placement(sorted_stay=False), ADAMW),
        (104, AWAY, ADAMW),
        (84, Placement(False, False, micro_batch=2), ADAMW),
        (74, Placement(False, False, micro_batch=1), ADAMW),
        (68, Placement(False, False, recompute=True), ADAMW),
        (65, Placement(False, False, recompute=True, micro_batch=1), ADAMW),
        (64, AWAY, EIGHT),
        (28, Placement(False, False, recompute=True), EIGHT),
        (25, Placement(False, False, recompute=True, micro_batch=1), EIGHT),
    ],
)
def test_the_first_that_fits_is_taken(there: int, placement: Placement, optimizer: OptimizerName) -> None:
    bytes = int(there * GB / (1 - MARGIN)) + 1
    assert choose(Known(), Capacity(bytes, None, shared=False), [ADAMW, EIGHT]) == (placement, optimizer)  # type: ignore[arg-type]


def test_what_cannot_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(InputError) as caught:
        choose(Known(), Capacity(48 * GB, None, shared=False), [ADAMW])  # type: ignore[arg-type]
    error = caught.value
    assert error.rule == "Every stage of a run has to fit into memory, with 5% left free"
    assert error.values.startswith("at the least distillation needs 65 GB of the device (weights 64 GB, ")
    assert error.values.endswith("which has 48 GB")
    assert error.remedy.startswith("Take --optimizer adamw-8bit, or ")
    assert error.remedy.endswith("find 21 GB more memory for the device")


def test_the_host_limits_too() -> None:
    with pytest.raises(InputError, match="needs 16 GB of the host"):
        choose(Known(), Capacity(80 * GB, 8 * GB, shared=False), [ADAMW, EIGHT])  # type: ignore[arg-type]


def test_a_table_in_words_and_in_bytes() -> None:
    placement = Placement(False, False, recompute=True, micro_batch=2)
    stages = tuple(Known().of(placement, EIGHT))
    found = ledger.Ledger(stages, Capacity(80 * GB, None, shared=False, told=True), placement, EIGHT)
    head, line = memory_lines(found)
    assert head.startswith("a card of 80 GB, its host is not known here, of which 5% stay free; ")
    assert "2 blocks a micro-batch, activations are recomputed, trained by adamw-8bit" in head
    assert line.startswith("distillation  26 GB of the device (weights 24 GB, activations 2 GB")
    rows = memory_rows(found)
    assert rows["stages"][0]["device"]["weights"] == 24 * GB
    assert (rows["device"], rows["host"], rows["optimizer"]) == (80 * GB, None, "adamw-8bit")
