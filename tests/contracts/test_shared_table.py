"""Every type that is cut along some axis passes the contract of slices: shared weights hold its students."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import CONFIG_MAPPING

from space.families.support import TYPES
from space.verification.contract import random_ranking
from space.verification.reload import captured_warnings
from space.verification.verification import Verified, verify
from tests.contracts.test_shared import drawn, shared_of, slice_is_extracted, train
from tests.contracts.test_table import cells
from tests.versions import of_pinned

CUT = [model_type for model_type in TYPES if cells(model_type)[0] != "–"]


@cache
def found_of(model_type: str) -> Verified:
    with captured_warnings():
        return verify(CONFIG_MAPPING[model_type]())


@of_pinned
def test_the_types_are_ninety_at_least() -> None:
    assert len(CUT) >= 90


@of_pinned
@pytest.mark.slow
@pytest.mark.parametrize("model_type", CUT)
def test_a_slice_is_the_extracted_student(model_type: str) -> None:
    found = found_of(model_type)
    ranking, architecture = random_ranking(found.small, 5), drawn(found.small, 2)
    shared = shared_of(found, ranking)
    for trained in (False, True):
        if trained:
            train(shared, found.small)
        slice_is_extracted(shared, architecture)
