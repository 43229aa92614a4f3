from __future__ import annotations

from collections import Counter

import pytest

from evaluators.corpus.blocks import Split, split_of
from evaluators.corpus.documents import standard_library


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["datetime.py", "fnmatch.py", "shutil.py", "struct.py"], Split.CALIBRATION),
        (["__future__.py", "_collections_abc.py", "_markupbase.py"], Split.DISTILLATION),
        (["modulefinder.py", "operator.py", "runpy.py", "sysconfig.py"], Split.VALIDATION),
    ],
)
def test_splits_never_change_since_the_embedded_teacher_rests_on_them(names: list[str], split: Split) -> None:
    assert {split_of(name) for name in names} == {split}


def test_one_document_in_twenty_each_is_for_validation_and_calibration() -> None:
    counts = Counter(split_of(f"document {number}") for number in range(20_000))
    assert counts[Split.VALIDATION] == pytest.approx(1000, abs=100)
    assert counts[Split.CALIBRATION] == pytest.approx(1000, abs=100)


def test_every_split_has_modules_of_the_standard_library() -> None:
    assert {split_of(document.name) for document in standard_library()} == set(Split)
