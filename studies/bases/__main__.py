"""Tokens of distillation that each basis of hidden needs to reach the same loss.

``python -m studies.bases`` trains width-pruned students of two teachers, head and embedding apart on all
sides, by forward KL; it appends each result to ``results.jsonl`` beside this file as it comes, goes on
where it stopped, and prints the table (``--table`` alone prints it without training).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.corpus.corpus import CorpusRequest, read_corpus
from evaluators.distillation.loop import distil
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets import CachedTargets, Targets, cache_targets
from evaluators.importance.method import Method
from evaluators.importance.rank import rank
from evaluators.loss import validation_loss
from evaluators.teacher import Teacher, load_teacher
from space.architecture import Architecture, Axis
from space.axis_map import AxisMap
from space.basis import BasisName
from space.extraction import extract, saved_tensors, sort_by_importance
from space.ranking import Ranking
from space.vouching import axis_map_of

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
_REAL = Path(os.environ.get("SLIMSEARCH_REAL", HERE.parents[1] / ".." / "shared" / "real"))
_STEP_TOKENS, _SEEDS = 2048, (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """One teacher, its text and the widths that its students keep."""

    name: str
    teacher: Path
    data: str
    block: int
    widths: dict[Axis, int]
    steps: tuple[int, ...]
    """Of the runs; the first is all that coordinates are compared at."""
    precision: str
    """Of training, as Accelerate names it."""


SETTINGS = (
    Setting(
        "stories260K",
        _REAL / "stories260K",
        str(_REAL / "tinystories.txt"),
        256,
        {Axis.HIDDEN: 48, Axis.MLP: 112},
        (300, 135, 75),
        "no",
    ),
    Setting(
        "embedded",
        HERE.parent / "demo" / "teacher",
        "stdlib",
        256,
        {Axis.HIDDEN: 128, Axis.MLP: 320},
        (300, 90, 45),
        "bf16",
    ),
)


class Bench:
    """A teacher with its text and cached targets."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        device, dtype = torch.device("cpu"), torch.float32
        self.teacher: Teacher = load_teacher(str(setting.teacher), revision=None, device=device, dtype=dtype)
        blocks = max(setting.steps) * _STEP_TOKENS // setting.block
        request = CorpusRequest(
            data=setting.data,
            block=setting.block,
            calibration_blocks=256,
            distillation_blocks=2 * blocks,
            validation_blocks=64,
        )
        self.corpus = read_corpus(request, self.teacher.tokenizer, setting.data, folder / "text")
        self.accelerator = Accelerator(cpu=True, mixed_precision=setting.precision)
        targets = folder / f"{setting.name}.bin"
        cache_targets(self.teacher.model, self.corpus.distillation, targets, "study", lambda blocks: None)
        self.targets = CachedTargets(targets, self.teacher.model, self.corpus.distillation)
        self.prepared: dict[BasisName, tuple[AxisMap, Ranking, dict[str, Tensor]]] = {}

    def prepare(self, basis: BasisName) -> tuple[AxisMap, Ranking, dict[str, Tensor]]:
        """Map, ranking and canonical weights, head and embedding apart in every basis."""
        if basis not in self.prepared:
            axis_map = axis_map_of(self.teacher.model.config, BasisName.PRINCIPAL)
            ranking = rank(
                self.teacher.model, axis_map, self.corpus.calibration, "study", method=Method(basis=basis)
            )
            weights = saved_tensors(self.teacher.model, axis_map)
            self.prepared[basis] = axis_map, ranking, sort_by_importance(weights, axis_map, ranking)
        return self.prepared[basis]

    def run(self, basis: BasisName, steps: int, seed: int) -> dict[str, Any]:
        """Distil one student; the seed chooses its text."""
        axis_map, ranking, canonical = self.prepare(basis)
        sizes = {axis: axis_map.teacher[axis] for axis in axis_map.free} | self.setting.widths
        architecture: Architecture = axis_map.complete(sizes)
        student = extract(canonical, axis_map, ranking, architecture)
        before = validation_loss(student, self.corpus.validation)
        schedule = Schedule(
            tokens=steps * _STEP_TOKENS,
            blocks=_STEP_TOKENS // self.setting.block,
            block=self.setting.block,
            peak_rate=peak_rate(student.num_parameters()),
        )
        began = time.monotonic()
        distil(student, Shuffled(self.targets, seed), schedule, self.accelerator)
        return {
            "teacher": self.setting.name,
            "basis": basis.value,
            "steps": steps,
            "seed": seed,
            "architecture": architecture.label,
            "parameters": student.num_parameters(),
            "before": before,
            "after": validation_loss(student, self.corpus.validation),
            "seconds": round(time.monotonic() - began, 1),
        }


class Shuffled:
    """The same blocks in the order of a seed."""

    def __init__(self, targets: Targets, seed: int) -> None:
        self.targets, self.blocks = targets, targets.blocks
        self.order = torch.randperm(targets.blocks, generator=torch.Generator().manual_seed(seed))

    def head(self, states: Tensor) -> Tensor:
        """See ``Targets``."""
        return self.targets.head(states)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks at these places of the shuffled order."""
        return self.targets.batch(self.order[numbers])


def done() -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def missing(setting: Setting) -> Iterator[tuple[BasisName, int, int]]:
    """The runs of a setting that have no result; coordinates need the longest alone."""
    have = {(r["teacher"], r["basis"], r["steps"], r["seed"]) for r in done()}
    for seed in _SEEDS:
        for basis in BasisName:
            for steps in setting.steps[:1] if basis is BasisName.COORDINATE else setting.steps:
                if (setting.name, basis.value, steps, seed) not in have:
                    yield basis, steps, seed


def table(results: list[dict[str, Any]]) -> str:
    """Mean validation loss with its standard deviation over seeds, one row a basis and number of steps."""
    rows = ["| teacher | basis | steps | before | after | ± | seeds |", "|---|---|--:|--:|--:|--:|--:|"]
    keys = sorted({(r["teacher"], r["steps"], r["basis"]) for r in results})
    for teacher, steps, basis in keys:
        of = [r for r in results if (r["teacher"], r["steps"], r["basis"]) == (teacher, steps, basis)]
        after = [r["after"] for r in of]
        spread = statistics.stdev(after) if len(after) > 1 else float("nan")
        rows.append(
            f"| {teacher} | {basis} | {steps} | {of[0]['before']:.3f} | {statistics.mean(after):.3f} "
            f"| {spread:.3f} | {len(of)} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of what is done")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        for setting in SETTINGS:
            runs = list(missing(setting))
            if not runs:
                continue
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(setting, Path(folder))
                for number, (basis, steps, seed) in enumerate(runs, 1):
                    result = bench.run(basis, steps, seed)
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    print(f"{number} of {len(runs)}: {result}", file=sys.stderr, flush=True)
    print(table(done()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
