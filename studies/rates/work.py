"""The runs of the study: students in each basis, at every rate and length, on the text of three seeds."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evaluators.distillation.rate_finding import HIGHEST
from evaluators.distillation.schedule import DivergenceError
from evaluators.importance.method import Method
from space.cutting.basis import BasisName
from space.enumeration.hand_made import UNIFORM
from studies.bench.bench import CALIBRATION_BLOCKS, Bench
from studies.bench.cuts import Cuts, share_of
from studies.bench.results import Results, Row
from studies.bench.setting import SETTINGS, STEP_TOKENS, Setting

HERE = Path(__file__).parent
RESULTS = Results(
    HERE / "results.jsonl", ("teacher", "basis", "student", "step_tokens", "steps", "seed", "exponent")
)
BASES = (BasisName.COORDINATE, BasisName.WEIGHTED)
#: Steps of 2048 tokens: of a rung, four times as many, and ten times.
LENGTHS = (16, 64, 160)
#: Powers of two times the rule's rate.
EXPONENTS = tuple(range(-3, HIGHEST + 1))
SEEDS = (0, 1, 2)
#: Size of the student, as a share of its teacher.
_SHARE = 0.6
_BLOCK = 512
#: Blocks that a teacher named by its directory is ranked on.
_FEWER_BLOCKS = 32


@dataclass(frozen=True)
class Asked:
    """Which part of the study is run."""

    lengths: tuple[int, ...] = LENGTHS
    exponents: tuple[int, ...] = EXPONENTS
    seeds: tuple[int, ...] = SEEDS
    bases: tuple[str, ...] = tuple(BASES)
    students: tuple[str, ...] = (UNIFORM,)
    """Names of baselines."""
    step_tokens: int = STEP_TOKENS

    def rows_of(self, teacher: str) -> list[Row]:
        """Return what every run is known by, the short ones first."""
        return [
            dict(zip(RESULTS.key, (teacher, *one), strict=True))
            for steps in self.lengths
            for seed in self.seeds
            for basis in self.bases
            for student in self.students
            for exponent in self.exponents
            for one in [(basis, student, self.step_tokens, steps, seed, exponent)]
        ]


def setting_of(teacher: str, data: str | None) -> Setting:
    """Return a small teacher by its name, or any other by its directory and a text.

    Raises:
        ValueError: a directory without a text.
    """
    if teacher in SETTINGS:
        return SETTINGS[teacher]
    if data is None:
        raise ValueError("a teacher by its directory needs a text")
    return Setting(Path(teacher).name, Path(teacher), data, _BLOCK, {}, 0, "bf16")


def work(teacher: str, data: str | None, asked: Asked, threads: int) -> None:
    """Run what is missing of one teacher.

    Args:
        teacher: name of a small teacher, or the directory of another.
        data: a text for the latter.
        asked: which part.
        threads: of arithmetic.
    """
    torch.set_num_threads(threads)
    setting = setting_of(teacher, data)
    runs = asked.rows_of(setting.name)
    if not (missing := RESULTS.missing(runs)):
        return
    with tempfile.TemporaryDirectory() as folder:
        small = teacher in SETTINGS
        blocks = CALIBRATION_BLOCKS if small else _FEWER_BLOCKS
        longest = max(LENGTHS if small else asked.lengths)
        bench = Bench(
            setting, longest, Path(folder), calibration_blocks=blocks, step_tokens=asked.step_tokens
        )
        students, teacher_loss = Students(bench), bench.loss(bench.teacher.model)
        for number, about in enumerate(missing, 1):
            student, before = students.student(BasisName(about["basis"]), about["student"])
            row = {**about, **trained(bench, student, before, about), "teacher_loss": teacher_loss}
            RESULTS.add(row)
            print(f"{number} of {len(missing)}: {row}", file=sys.stderr, flush=True)


def size_rule(parameters: int) -> float:
    """The rate that others are multiples of: the rule when the study began, with 3e-3 at a million."""
    return min(4e-3, 3e-3 * math.pow(1e6 / parameters, math.log(30) / math.log(4000)))


def trained(bench: Bench, student: PreTrainedModel, before: float, about: Mapping[str, int]) -> Row:
    """Train a student at its rate; its losses before and after, the latter None if it diverged."""
    rule = size_rule(student.num_parameters())
    try:
        rate = rule * 2.0 ** about["exponent"]
        row = bench.distilled(student, about["steps"], about["seed"], rate, before=before)
    except DivergenceError:
        row = {"parameters": student.num_parameters(), "before": before, "after": None}
    after = row["after"]
    return {**row, "rule": rule, "after": after if after is not None and math.isfinite(after) else None}


class Students:
    """Makes the baselines of a teacher in each basis, repaired by least squares.

    Layers are ordered by their influence: the students that are compared keep all of them.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, model = bench, bench.teacher.model
        self.cuts = Cuts(model, bench.corpus.calibration, share_of(model, _SHARE))
        self._before: dict[tuple[BasisName, str], float] = {}

    def student(self, basis: BasisName, baseline: str) -> tuple[PreTrainedModel, float]:
        """Return a student straight after pruning, and its loss, which is measured once."""
        student = self.cuts.cut(Method(basis=basis), baseline)
        if (basis, baseline) not in self._before:
            self._before[basis, baseline] = self.bench.loss(student)
        return student, self._before[basis, baseline]


def curves_of(rows: Sequence[Row]) -> dict[int, dict[int, dict[int, float]]]:
    """Return losses by steps, seed and exponent; a training that diverged has an infinite loss."""
    found: dict[int, dict[int, dict[int, float]]] = {}
    for row in rows:
        loss = math.inf if row["after"] is None else row["after"]
        found.setdefault(row["steps"], {}).setdefault(row["seed"], {})[row["exponent"]] = loss
    return found
