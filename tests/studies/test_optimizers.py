"""The study of optimisers compares like with like, and tables what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from evaluators.distillation.optimizers import OptimizerName
from space.axes.architecture import Axis
from studies.bench.results import Results
from studies.bench.setting import EMBEDDED, SMOLLM2
from studies.optimizers import __main__ as study
from studies.optimizers.work import RESULTS, SEEDS, TEACHERS, described, lengths_of, runs_of


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_run_has_its_like_by_the_other_optimiser(teacher: str) -> None:
    runs = {name: {run[1:] for run in runs_of(teacher) if run[0] is name} for name in OptimizerName}
    assert runs[OptimizerName.ADAMW] == runs[OptimizerName.ADAMW_8BIT]
    assert runs[OptimizerName.ADAMW] == {(steps, seed) for steps in lengths_of(teacher) for seed in SEEDS}


def test_differences_are_taken_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", results)
    for seed in SEEDS:
        for name, after, size in ((OptimizerName.ADAMW, 2.0, 1600), (OptimizerName.ADAMW_8BIT, 2.125, 625)):
            about = described(EMBEDDED.name, name, 24, seed)
            values = {"parameters": 100, "before": 5.0, "seconds": 7.0, "bytes": size}
            results.add({**about, "after": after + seed, **values})
    lines = study.tables().splitlines()
    assert "## embedded, students of 100 parameters" in lines
    assert "| adamw | 24 | 3.000 ± 1.000 |  | 7 | 16.00 |" in lines
    assert "| adamw-8bit | 24 | 3.125 ± 1.000 | 0.125 ± 0.000 | 7 | 6.25 |" in lines
    assert not any(SMOLLM2.name in line for line in lines)


def test_students_of_the_real_teacher_have_sizes_that_its_class_takes() -> None:
    """SmolLM2-135M has nine heads; a width that they do not divide is refused by its config."""
    widths = SMOLLM2.widths
    LlamaConfig(
        hidden_size=widths[Axis.HIDDEN],
        intermediate_size=widths[Axis.MLP],
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
    )
