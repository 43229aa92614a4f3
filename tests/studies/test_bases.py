"""The study of bases goes on where it stopped and tables what is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from studies.bases import __main__ as study
from studies.bases.variants import VARIANTS, Variant
from studies.bases.work import RESULTS, described
from studies.bench.results import Results


def row(basis: str, gain: bool, steps: int, seed: int, after: float) -> dict[str, Any]:
    about = described("embedded", Variant(basis, gain), steps, seed)
    return {**about, "before": 5.0, "after": after}


def test_every_variant_has_a_mark_to_be_compared_to() -> None:
    marks = {(v.size, v.rate) for v in VARIANTS if v.basis == "coordinate" and v.lengths[-1] in v.steps}
    assert {(v.size, v.rate) for v in VARIANTS} == marks
    assert all(v.steps for v in VARIANTS)
    assert len(set(VARIANTS)) == len(VARIANTS)


def test_the_share_of_tokens_is_found_between_the_lengths_that_were_run() -> None:
    def loss(steps: float) -> float:
        return 4 - 0.5 * math.log(steps)

    curve = {steps: loss(steps) for steps in (40, 80, 160)}
    for wanted in (48.0, 100.0, 160.0, 20.0, 320.0):
        assert study.share_of_tokens(curve, 160, loss(wanted)) == pytest.approx(wanted / 160)
        assert study.share_of_tokens(curve, 80, loss(wanted)) == pytest.approx(wanted / 80)


def test_the_table_has_means_deviations_and_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", results)
    for seed, off in enumerate((0.0, 0.2, 0.4)):
        results.add(row("coordinate", False, 160, seed, 3.0 + off))
        for steps, loss in ((40, 3.5), (80, 3.0), (160, 2.5)):
            results.add(row("weighted", True, steps, seed, loss + off))
    lines = study.tables().splitlines()
    assert "## embedded, main cut, rule rate" in lines
    assert "| coordinate | 5.000 |  |  | 3.200 ± 0.200 |  |  |" in lines
    assert "| weighted, gain | 5.000 | 3.700 ± 0.200 | 3.200 ± 0.200 | 2.700 ± 0.200 | 0.50 |  |" in lines
