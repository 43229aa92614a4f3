"""The runs of the study: students of one teacher, scored after a short distillation and after a long one."""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evaluators.importance.method import Depth, Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from evaluators.tasks.divergence import AnswerDivergence
from evaluators.tasks.examples import subset
from evaluators.tasks.scores import TaskScores
from evaluators.tasks.task import ExampleScorer, Task
from space.axes.architecture import Architecture, Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.repair import Repair
from space.verification.verification import verified_axis_map
from studies.bench.bench import CALIBRATION_BLOCKS, VALIDATION_TOKENS, Bench
from studies.bench.results import Results, Row
from studies.bench.setting import Setting

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "label", "short", "long", "seed"))
#: How many examples foretell, beside all of them.
SAMPLES = (100, 500)


@dataclass(frozen=True)
class Plan:
    """What is trained and by which task it is judged."""

    setting: Setting
    task: str
    """Path of its file of examples."""
    sizes: Mapping[Axis, Sequence[int]]
    """Those that students are drawn from."""
    students: int
    steps: tuple[int, int]
    """Of the short distillation and of the long one."""
    judged: int
    """Examples by which students are judged after the long one."""
    calibration_blocks: int = CALIBRATION_BLOCKS
    validation_tokens: int = VALIDATION_TOKENS

    def architectures(self) -> list[dict[Axis, int]]:
        """Return the sizes of the students, drawn once; the whole teacher is not among them."""
        axes = list(self.sizes)
        every = [dict(zip(axes, sizes, strict=True)) for sizes in itertools.product(*self.sizes.values())]
        largest = {axis: max(sizes) for axis, sizes in self.sizes.items()}
        smaller = [sizes for sizes in every if sizes != largest]
        return random.Random(0).sample(smaller, min(self.students, len(smaller)))


def work(plan: Plan, seed: int, threads: int) -> None:
    """Run what is missing; results are written as they come."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        students: Students | None = None
        short, long = plan.steps
        runs = {_label(sizes): sizes for sizes in plan.architectures()}
        about = {"teacher": plan.setting.name, "short": short, "long": long, "seed": seed}
        for run in RESULTS.missing([{**about, "label": label} for label in runs]):
            students = students or Students(plan, Path(folder))
            row = {**run, **students.measured(runs[run["label"]], seed)}
            RESULTS.add(row)
            print(row, file=sys.stderr, flush=True)


def _label(sizes: Mapping[Axis, int]) -> str:
    return " ".join(f"{axis.value}={size}" for axis, size in sizes.items())


class Students:
    """Makes, repairs, trains and scores the students of a teacher."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.bench = Bench(
            plan.setting,
            max(plan.steps),
            folder,
            calibration_blocks=plan.calibration_blocks,
            validation_tokens=plan.validation_tokens,
        )
        model, tokenizer = self.bench.teacher.model, self.bench.teacher.tokenizer
        self.axis_map = verified_axis_map(model.config)
        calibration = self.bench.corpus.calibration
        self.ranking = rank(model, self.axis_map, calibration, "study", method=Method(depth=Depth.INFLUENCE))
        moments = gather_moments(model, self.axis_map, calibration, "study")
        self.repair = Repair(least_squares=True, moments=moments.sorted_by(self.axis_map, self.ranking))
        self.weights = sort_by_importance(saved_tensors(model, self.axis_map), self.axis_map, self.ranking)
        every = Task.of(plan.task).examples()
        assert every is not None
        self.judges = {
            number: ExampleScorer.of(subset(every, number), tokenizer, model)
            for number in (*SAMPLES, plan.judged)
        }
        self.divergences = {
            number: AnswerDivergence.of(model, self.judges[number].examples, self.judges[number].choices)
            for number in SAMPLES
        }
        self.teacher = self.judges[plan.judged].score(model)

    def measured(self, sizes: Mapping[Axis, int], seed: int) -> Row:
        """Train one student twice, and return what was measured after each."""
        short, long = self.plan.steps
        student = self._student(sizes)
        early = self.bench.distilled(student, short, seed)
        foretold = {"loss": early["after"], "parameters": early["parameters"], **self._foretellers(student)}
        student = self._student(sizes)
        late = self.bench.distilled(student, long, seed)
        scores = self.judges[self.plan.judged].score(student)
        return {
            "early": foretold,
            "distil_seconds": early["seconds"],
            "final": {"loss": late["after"], **_figures(scores)},
            "of_teacher": _figures(self.teacher),
        }

    def _student(self, sizes: Mapping[Axis, int]) -> PreTrainedModel:
        whole: dict[Axis, int] = {axis: self.axis_map.teacher[axis] for axis in self.axis_map.free}
        architecture: Architecture = self.axis_map.complete({**whole, **sizes})
        return extract(self.weights, self.axis_map, self.ranking, architecture, repair=self.repair)

    def _foretellers(self, student: PreTrainedModel) -> dict[str, float]:
        student.eval()
        found: dict[str, float] = {}
        for number in SAMPLES:
            began = time.monotonic()
            scores = self.judges[number].score(student)
            found[f"seconds@{number}"] = round(time.monotonic() - began, 2)
            found[f"accuracy@{number}"] = scores.accuracy.value
            found[f"margin@{number}"] = scores.margin.value
            found[f"kl@{number}"] = float(self.divergences[number](student).mean())
        return found


def _figures(scores: TaskScores) -> dict[str, float]:
    return {
        "accuracy": scores.accuracy.value,
        "accuracy_error": scores.accuracy.error,
        "margin": scores.margin.value,
    }
