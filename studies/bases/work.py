"""The runs of the study: every variant and length, on the text of three seeds, for one teacher."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from evaluators.distillation.schedule import peak_rate
from studies.bases.variants import LONGEST, RATES, RULE, VARIANTS, Students, Variant
from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import SETTINGS, STORIES

HERE = Path(__file__).parent
_KEY = ("teacher", "basis", "gain", "size", "rate", "repaired", "steps", "seed")
RESULTS = Results(HERE / "results.jsonl", _KEY)
_SEEDS = (0, 1, 2)


def described(teacher: str, variant: Variant, steps: int, seed: int) -> Row:
    """What a run is known by."""
    return {"teacher": teacher, **vars(variant), "steps": steps, "seed": seed}


def work(teacher: str) -> None:
    """Run what is missing of one teacher, one seed after the other."""
    torch.set_num_threads(1)
    asked = [variant for variant in VARIANTS if variant.rate == RULE or teacher == STORIES.name]
    runs = [(variant, steps, seed) for seed in _SEEDS for variant in asked for steps in variant.steps]
    if not RESULTS.missing([described(teacher, *run) for run in runs]):
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SETTINGS[teacher], LONGEST, Path(folder))
        students = Students(bench)
        for number, (variant, steps, seed) in enumerate(runs, 1):
            about = described(teacher, variant, steps, seed)
            if RESULTS.missing([about]):
                student = students.student(variant)
                rate = RATES[variant.rate] * peak_rate(student.num_parameters())
                row = {**about, **bench.distilled(student, steps, seed, rate)}
                RESULTS.add(row)
                print(f"{number} of {len(runs)}: {row}", file=sys.stderr, flush=True)
