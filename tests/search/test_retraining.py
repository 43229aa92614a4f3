"""A retraining that fails is a result with a reason, kept like any other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from evaluators.distillation.loop import DivergenceError
from search import retraining
from search.retraining import Assignment, finished, retrain
from search.workbench import Workbench
from space.architecture import Architecture

ASSIGNMENT = Assignment(Architecture(64, 128, 4, 2, 5), "search", 1)


@pytest.mark.parametrize(
    "error", [DivergenceError("the loss is nan at step 3"), torch.OutOfMemoryError("out of memory")]
)
def test_a_failure_is_recorded_and_not_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(retraining, "_retrain", fails)
    bench = cast(Workbench, SimpleNamespace(directory=tmp_path))
    assert finished(bench, ASSIGNMENT) is None
    result = retrain(bench, ASSIGNMENT, lambda tokens: None)
    assert (result.loss, result.path, result.failure) == (None, None, str(error))
    assert finished(bench, ASSIGNMENT) == result


def test_any_other_error_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr(retraining, "_retrain", fails)
    bench = cast(Workbench, SimpleNamespace(directory=tmp_path))
    with pytest.raises(OSError, match="disk"):
        retrain(bench, ASSIGNMENT, lambda tokens: None)
    assert finished(bench, ASSIGNMENT) is None
