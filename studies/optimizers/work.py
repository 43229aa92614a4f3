"""The runs of the study: both optimisers at both lengths, on three orders of the text, for one teacher."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evaluators.distillation.optimizers import OptimizerName, training_bytes
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import EMBEDDED, SMOLLM2, STORIES, Setting

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "optimizer", "steps", "seed"))
TEACHERS: Mapping[str, Setting] = {setting.name: setting for setting in (STORIES, EMBEDDED, SMOLLM2)}
SEEDS = (0, 1, 2)
#: Steps of 2048 tokens. Of small teachers those of the last rung and of retraining; of the large one what two
#: cores do in hours.
_LENGTHS, _LENGTHS_LARGE = (24, 96), (8, 32)


def lengths_of(teacher: str) -> tuple[int, int]:
    """Return how many steps the short and the long training of a teacher's students take."""
    return _LENGTHS_LARGE if teacher == SMOLLM2.name else _LENGTHS


def described(teacher: str, optimizer: OptimizerName, steps: int, seed: int) -> Row:
    """What a run is known by."""
    return {"teacher": teacher, "optimizer": optimizer.value, "steps": steps, "seed": seed}


def runs_of(teacher: str) -> list[tuple[OptimizerName, int, int]]:
    """Return all runs of a teacher, one seed after the other."""
    return [(name, steps, seed) for seed in SEEDS for steps in lengths_of(teacher) for name in OptimizerName]


def work(teacher: str, threads: int) -> None:
    """Run what is missing of one teacher; both optimisers with arithmetic in bfloat16."""
    torch.set_num_threads(threads)
    runs = runs_of(teacher)
    if not RESULTS.missing([described(teacher, *run) for run in runs]):
        return
    with tempfile.TemporaryDirectory() as folder:
        setting = replace(TEACHERS[teacher], precision="bf16")
        students = Students(Bench(setting, lengths_of(teacher)[-1], Path(folder)))
        for number, (optimizer, steps, seed) in enumerate(runs, 1):
            about = described(teacher, optimizer, steps, seed)
            if RESULTS.missing([about]):
                row = {**about, **students.trained(optimizer, steps, seed)}
                RESULTS.add(row)
                print(f"{number} of {len(runs)}: {row}", file=sys.stderr, flush=True)


class Students:
    """Makes and trains the width-pruned students of one teacher, which is ranked once."""

    def __init__(self, bench: Bench) -> None:
        self.bench, model = bench, bench.teacher.model
        self.axis_map = verified_axis_map(model.config)
        method = Method(depth=Depth.RANDOM)  # all layers stay
        self.ranking = rank(model, self.axis_map, bench.corpus.calibration, "study", method=method)
        self.weights = sort_by_importance(saved_tensors(model, self.axis_map), self.axis_map, self.ranking)

    def trained(self, optimizer: OptimizerName, steps: int, seed: int) -> Row:
        """Train a student; its losses before and after, and the memory of its training state."""
        student = self._student()
        shapes = [parameter.shape for parameter in student.parameters()]
        measured = self.bench.distilled(student, steps, seed, optimizer=optimizer)
        return {**measured, "bytes": training_bytes(shapes, optimizer).total}

    def _student(self) -> PreTrainedModel:
        whole = {axis: self.axis_map.teacher[axis] for axis in self.axis_map.free}
        architecture = self.axis_map.complete({**whole, **self.bench.setting.widths})
        return extract(self.weights, self.axis_map, self.ranking, architecture)
