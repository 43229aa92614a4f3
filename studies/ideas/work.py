"""What the study of ideas runs, and where it keeps what came out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import SETTINGS
from studies.ideas.variants import STUDENTS, Students

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "idea", "variant", "steps", "seed"))
STEPS, SEEDS = 48, (0, 1, 2)
STUDENT = "student"


def described(teacher: str, idea: str, variant: str, steps: int, seed: int) -> Row:
    """What a run is known by."""
    return {"teacher": teacher, "idea": idea, "variant": variant, "steps": steps, "seed": seed}


class Work:
    """What is made once for a teacher, however many runs it has."""

    def __init__(self, teacher: str, folder: Path) -> None:
        self.teacher = teacher
        self.bench = Bench(SETTINGS[teacher], STEPS, folder)
        self.students = Students(self.bench)

    def before(self) -> None:
        """Measure all that needs no distillation."""
        whole = None
        for idea, name, measure in self.students.measures():
            about = described(self.teacher, idea, name, 0, 0)
            if RESULTS.missing([about]):
                whole = whole or self.bench.loss(self.bench.teacher.model)
                self._add({**about, "teacher_loss": whole, "before": measure()})

    def distil(self, seed: int) -> None:
        """Distil all students on the text of one seed."""
        for variant in STUDENTS:
            about = described(self.teacher, STUDENT, variant.name, STEPS, seed)
            if RESULTS.missing([about]):
                student = self.students.student(variant)
                self._add({**about, **self.bench.distilled(student, STEPS, seed)})

    def _add(self, row: Row) -> None:
        RESULTS.add(row)
        print(row, file=sys.stderr, flush=True)


def work(teacher: str, seeds: Sequence[int]) -> None:
    """Run what is missing of one teacher: first what needs no distillation, then one seed after the other."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        one = Work(teacher, Path(folder))
        one.before()
        for seed in seeds:
            one.distil(seed)
