"""The runs of the study: every variant of a student, at two lengths, on several orders of the text."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.schedule import peak_rate
from evaluators.distillation.states import States, states_named
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.live import LiveTargets
from evaluators.metrics.loss import bits_per_byte, predicted_tokens
from evaluators.tasks.depth import MarginCosts
from evaluators.tasks.examples import read_examples, subset
from evaluators.tasks.task import ExampleScorer
from studies.bench.bench import Bench
from studies.bench.cuts import Cuts, share_of
from studies.bench.results import Results, Row
from studies.bench.setting import Setting
from studies.distillation.sparse import Few
from studies.real.variants import Variant

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "variant", "steps", "seed"))
#: Size of the students, as a share of their teacher.
_SHARE = 0.6
_DEPTH_EXAMPLES = 200


@dataclass(frozen=True)
class Amounts:
    """How much is read, trained and judged."""

    step_tokens: int = 512
    steps: tuple[int, ...] = (96, 768)
    """Of the trainings: about 50 and 400 thousand tokens."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the order of the text."""
    calibration_blocks: int = 32
    examples: int = 1340
    """Of the task."""


TEACHER = "teacher"


def runs_of(teacher: str, variants: Sequence[Variant], amounts: Amounts) -> list[Row]:
    """What every run is known by: the short ones first, and of these all variants with one seed."""
    return [
        {"teacher": teacher, "variant": variant.name, "steps": steps, "seed": seed}
        for steps in amounts.steps
        for seed in amounts.seeds
        for variant in variants
    ]


def work(setting: Setting, task: Path, variants: Sequence[Variant], amounts: Amounts, threads: int) -> None:
    """Run what is missing; results are written as they come.

    Args:
        setting: the teacher and its text.
        task: file of examples.
        variants: of students.
        amounts: of everything.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    named = {variant.name: variant for variant in variants}
    missing = RESULTS.missing(runs_of(setting.name, variants, amounts))
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        students = Students(setting, task, amounts, Path(folder))
        of_teacher = {"teacher": setting.name, "variant": TEACHER, "steps": 0, "seed": 0}
        if RESULTS.missing([of_teacher]):
            RESULTS.add({**of_teacher, **students.judged(students.bench.teacher.model)})
        for number, run in enumerate(missing, 1):
            row = {**run, **students.trained(named[run["variant"]], run["steps"], run["seed"])}
            RESULTS.add(row)
            print(f"{number} of {len(missing)}: {row}", file=sys.stderr, flush=True)


class Students:
    """Makes, trains and judges the students of a teacher."""

    def __init__(self, setting: Setting, task: Path, amounts: Amounts, folder: Path) -> None:
        self.bench = Bench(
            setting,
            max(amounts.steps),
            folder,
            calibration_blocks=amounts.calibration_blocks,
            step_tokens=amounts.step_tokens,
        )
        model, tokenizer = self.bench.teacher.model, self.bench.teacher.tokenizer
        examples = read_examples(task)
        self.scorer = ExampleScorer.of(subset(examples, amounts.examples), tokenizer, model)
        some = ExampleScorer.of(subset(examples, _DEPTH_EXAMPLES), tokenizer, model)
        self.judge = MarginCosts(some.examples, some.choices)
        self.parameters = share_of(model, _SHARE)
        self.cuts = self._cuts(model, self.parameters)

    def trained(self, variant: Variant, steps: int, seed: int) -> Row:
        """Make a student, train it, and return what it is worth before and after."""
        seconds = 0.0
        if variant.through:
            model = self.bench.teacher.model
            between = self._cuts(model, share_of(model, variant.through)).cut(variant.method, variant.shape)
            seconds = self.bench.distilled(between, steps // 2, seed)["seconds"]
            student = self._cuts(between, self.parameters).cut(variant.method, variant.shape)
            steps -= steps // 2
        else:
            student = self._student(variant, seed)
        states = self._states(variant, student)
        measured = self.bench.distilled(
            student,
            steps,
            seed,
            peak_rate(student.num_parameters(), steps, self.bench.step_tokens),
            targets=self._targets(variant, states),
            loss=Loss.parse(variant.loss),
            states=states,
        )
        return {**measured, "seconds": measured["seconds"] + seconds, **self.judged(student)}

    def judged(self, model: PreTrainedModel) -> Row:
        """Bits per byte on the held-out text, and accuracy and margin on the task."""
        validation = self.bench.corpus.validation
        loss, scores = self.bench.loss(model), self.scorer.score(model)
        return {
            "loss": loss,
            "bits_per_byte": bits_per_byte(
                loss, predicted_tokens(validation), self.bench.corpus.validation_bytes
            ),
            "accuracy": scores.accuracy.value,
            "accuracy_error": scores.accuracy.error,
            "margin": scores.margin.value,
            "parameters": model.num_parameters(),
        }

    def _cuts(self, model: PreTrainedModel, parameters: int) -> Cuts:
        return Cuts(model, self.bench.corpus.calibration, parameters, self.judge)

    def _student(self, variant: Variant, seed: int) -> PreTrainedModel:
        student = self.cuts.cut(variant.method, variant.shape, repaired=variant.repaired)
        if not variant.random_weights:
            return student
        torch.manual_seed(seed)
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(student.config)
        fresh.eval()
        return fresh

    def _states(self, variant: Variant, student: PreTrainedModel) -> States | None:
        layers = self.bench.teacher.model.config.num_hidden_layers
        return states_named(variant.states, student.config.num_hidden_layers, layers)

    def _targets(self, variant: Variant, states: States | None) -> Targets:
        cached = self.bench.targets
        if states is not None:
            return LiveTargets(
                self.bench.teacher.model, cached.tokens, states.of_teacher, learnt=cached.learnt
            )
        return Few(cached, draws=variant.draws) if variant.draws else cached
