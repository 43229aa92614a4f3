"""The study of bases goes on where it stopped and tables what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from space.basis import BasisName
from studies.bases import __main__ as study


def result(basis: str, steps: int, seed: int, after: float) -> dict[str, object]:
    return {
        "teacher": "embedded",
        "basis": basis,
        "steps": steps,
        "seed": seed,
        "before": 5.0,
        "after": after,
    }


def test_only_what_has_no_result_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(study, "RESULTS", results)
    setting = next(setting for setting in study.SETTINGS if setting.name == "embedded")
    runs = list(study.missing(setting))
    assert len(runs) == 3 * (1 + 3 + 3)
    results.write_text(json.dumps(result("coordinate", 300, 0, 3.0)) + "\n")
    assert list(study.missing(setting)) == [run for run in runs if run != (BasisName.COORDINATE, 300, 0)]


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    rows = study.table([result("coordinate", 300, seed, after) for seed, after in enumerate((3.0, 3.2, 3.4))])
    assert rows.splitlines()[-1] == "| embedded | coordinate | 300 | 5.000 | 3.200 | 0.200 | 3 |"


def test_a_seed_is_an_order_of_the_same_blocks() -> None:
    class Numbered:
        blocks = 7

        def head(self, states: torch.Tensor) -> torch.Tensor:
            return states

        def batch(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return numbers, numbers

    orders = [study.Shuffled(Numbered(), seed).batch(torch.arange(7))[0].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(7)) for order in orders)
