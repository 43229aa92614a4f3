from __future__ import annotations

from itertools import chain, count

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import TrainingMonitor, distil
from evaluators.distillation.targets.batch import Batch
from tests.evaluators.distillation.training import (
    Recorded,
    loss_of,
    schedule,
)
from tests.evaluators.tiny_models import same_weights, tiny_student, weights

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Cramped(Recorded):
    """Targets that run out of memory when more than ``most`` blocks are asked for."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def batch(self, numbers: Tensor) -> Batch:
        if len(numbers) > self.most:
            raise RuntimeError(OUT_OF_MEMORY)
        return super().batch(numbers)


def assert_close_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    others = weights(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("most", "micro"), [(4, 4), (3, 2), (2, 2), (1, 1)])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    accelerator: Accelerator, most: int, micro: int
) -> None:
    student, roomy, told = tiny_student(), tiny_student(), list[int]()
    cramped, whole = Cramped(most), Recorded()
    watch = TrainingMonitor(validate=loss_of, times=4, advance=told.append)
    outcome = distil(student, cramped, schedule(), accelerator, watch)
    wanted = distil(roomy, whole, schedule(), accelerator, TrainingMonitor(validate=loss_of, times=4))
    assert {len(numbers) for numbers in cramped.asked} == {micro}
    assert list(chain(*cramped.asked)) == list(chain(*whole.asked))
    assert sum(told) == outcome.tokens
    assert [point[0] for point in outcome.curve] == [point[0] for point in wanted.curve]
    assert_close_weights(student, roomy)


def test_a_step_that_ran_out_of_memory_half_way_is_taken_once(accelerator: Accelerator) -> None:
    """Its first micro-batches had left gradients behind."""
    calls = count()

    class Sudden(Cramped):
        def batch(self, numbers: Tensor) -> Batch:
            if next(calls) == 1 + 2 * 2 + 1:  # the second micro-batch of the third step
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
            return super().batch(numbers)

    student, roomy, targets = tiny_student(), tiny_student(), Sudden(2)
    distil(student, targets, schedule(), accelerator)
    distil(roomy, Recorded(), schedule(), accelerator)
    assert targets.asked[4:10] == [[8, 9], [8], [9], [0], [1], [2]]
    assert_close_weights(student, roomy)


def test_a_validation_that_ran_out_of_memory_is_taken_again(accelerator: Accelerator) -> None:
    calls = count()

    def validate(model: PreTrainedModel) -> float:
        if next(calls) == 3:  # the last one
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return loss_of(model)

    student, roomy = tiny_student(), tiny_student()
    outcome = distil(
        student, Recorded(), schedule(), accelerator, TrainingMonitor(validate=validate, times=4)
    )
    wanted = distil(roomy, Recorded(), schedule(), accelerator, TrainingMonitor(validate=loss_of, times=4))
    assert outcome.curve == wanted.curve
    assert same_weights(student, roomy)


def test_where_not_even_one_block_fits_that_is_the_reason(accelerator: Accelerator) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory with a micro-batch of one block$"):
        distil(tiny_student(), Cramped(0), schedule(), accelerator)


def test_other_errors_are_passed_on_at_once(accelerator: Accelerator) -> None:
    calls = count()

    class Broken(Recorded):
        def batch(self, numbers: Tensor) -> Batch:
            next(calls)
            raise RuntimeError("the disk was pulled out")

    with pytest.raises(RuntimeError, match=r"^the disk was pulled out$"):
        distil(tiny_student(), Broken(), schedule(), accelerator)
    assert next(calls) == 1
