"""The runs of the study: every variant, on the text of three seeds, for one teacher."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.schedule import peak_rate
from evaluators.distillation.states import (
    StateDistance,
    StateKind,
    StatePair,
    StatePlace,
    States,
    states_named,
)
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.live import LiveTargets
from evaluators.importance.method import Aggregate, Depth, Method
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import SETTINGS
from studies.distillation.sparse import BYTES_OF_ONE, Few, drawn_bytes
from studies.distillation.variants import HIGHEST, SEEDS, STEPS, VARIANTS, Variant

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "study", "variant", "rate", "seed"))
#: Steps of text that an order is drawn from; nobody reads it twice.
_TEXT = 4 * STEPS
_METHOD = Method(batch=Aggregate.L2, sequence=Aggregate.L2, depth=Depth.PERPLEXITY)


def described(teacher: str, variant: Variant, rate: float, seed: int) -> Row:
    """What a run is known by."""
    return {
        "teacher": teacher,
        "study": variant.study,
        "variant": variant.name,
        "rate": rate,
        "seed": seed,
    }


def rates_of(teacher: str, variant: Variant, seed: int) -> Iterator[float]:
    """With the first seed all rates, and higher ones while the highest is best; then the best one.

    With equal FLOPs it is the best of equal tokens. Each rate is asked for when those before have results.
    """
    first = seed == SEEDS[0] and not variant.equal_flops
    if first:
        yield from variant.rates
    tried = _tried(teacher, variant)
    if not first:
        yield min(tried, key=lambda rate: tried[rate]) if tried else variant.rates[0]
        return
    while len(variant.rates) > 1 and max(tried) == min(tried, key=lambda rate: tried[rate]) < HIGHEST:
        yield 2 * max(tried)
        tried = _tried(teacher, variant)


def _tried(teacher: str, variant: Variant) -> dict[float, float]:
    """Losses with the first seed, by rate."""
    wanted = teacher, variant.study, variant.name.removesuffix(", equal FLOPs"), SEEDS[0]
    return {
        row["rate"]: row["after"]
        for row in RESULTS.rows()
        if (row["teacher"], row["study"], row["variant"], row["seed"]) == wanted
    }


def runs(teacher: str) -> Iterator[tuple[Variant, float, int]]:
    """All that is wanted of one teacher, seed by seed."""
    for seed in SEEDS:
        for variant in VARIANTS:
            yield from ((variant, rate, seed) for rate in rates_of(teacher, variant, seed))


def work(teacher: str) -> None:
    """Run what is missing of one teacher."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SETTINGS[teacher], _TEXT, Path(folder))
        students = Students(bench)
        for variant, rate, seed in runs(teacher):
            about = described(teacher, variant, rate, seed)
            if not RESULTS.missing([about]):
                continue
            row = {**about, **(twin(about, variant) or students.trained(variant, rate, seed))}
            RESULTS.add(row)
            print(row, file=sys.stderr, flush=True)


def twin(about: Row, variant: Variant) -> Row | None:
    """What was measured of the same training in another study."""

    def plain(one: Variant) -> tuple[Any, ...]:
        return astuple(replace(one, study="", name="", rates=()))

    same = {(one.study, one.name) for one in VARIANTS if plain(one) == plain(variant)}
    for row in RESULTS.rows():
        alike = all(row[name] == about[name] for name in ("teacher", "rate", "seed"))
        if alike and (row["study"], row["variant"]) in same:
            return {name: value for name, value in row.items() if name not in about}
    return None


class Students:
    """Makes and trains the students of one teacher; it is ranked once."""

    def __init__(self, bench: Bench) -> None:
        self.bench, model = bench, bench.teacher.model
        self.axis_map = verified_axis_map(model.config)
        self.ranking = rank(model, self.axis_map, bench.corpus.calibration, "study", method=_METHOD)
        self.weights = sort_by_importance(saved_tensors(model, self.axis_map), self.axis_map, self.ranking)

    def trained(self, variant: Variant, rate: float, seed: int) -> Row:
        """Train a student in one way; its losses before and after, and what was learnt from."""
        student = self._student(variant.student, seed)
        parameters, teachers = student.num_parameters(), self.bench.teacher.model.num_parameters()
        steps = round(STEPS * (1 + teachers / (3 * parameters))) if variant.equal_flops else STEPS
        states = self._states(variant, student)
        targets, about = self._targets(variant, states)
        measured = self.bench.distilled(
            student,
            steps,
            seed,
            rate * peak_rate(parameters),
            targets=targets,
            loss=Loss.parse(variant.loss, variant.temperature),
            states=states,
        )
        return {**measured, **about, "steps": steps}

    def _student(self, kind: str, seed: int) -> PreTrainedModel:
        setting = self.bench.setting
        sizes = {Axis.LAYERS: setting.layers} if kind == "depth" else setting.widths
        whole = {axis: self.axis_map.teacher[axis] for axis in self.axis_map.free}
        architecture = self.axis_map.complete({**whole, **sizes})
        student = extract(self.weights, self.axis_map, self.ranking, architecture)
        if kind != "random":
            return student
        torch.manual_seed(seed)
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(student.config)
        fresh.eval()
        return fresh

    def _states(self, variant: Variant, student: PreTrainedModel) -> States | None:
        layers, teachers = student.config.num_hidden_layers, self.axis_map.teacher.layers
        if variant.states == ("wrong",):
            return States(
                (StatePair(StatePlace(StateKind.BLOCK, layers - 1), StatePlace(StateKind.BLOCK, 0)),)
            )
        states = states_named(variant.states, layers, teachers)
        return None if states is None else replace(states, by=StateDistance(variant.by))

    def _targets(self, variant: Variant, states: States | None) -> tuple[Targets | None, Row]:
        cached = self.bench.targets
        if states is not None:
            model = self.bench.teacher.model
            return LiveTargets(model, cached.tokens, states.of_teacher, learnt=cached.learnt), {}
        if variant.draws:
            size = drawn_bytes(cached, variant.draws)
            return Few(cached, draws=variant.draws), {"bytes": round(size, 1)}
        if variant.as_many_bytes_as:
            largest = max(1, round(drawn_bytes(cached, variant.as_many_bytes_as) / BYTES_OF_ONE))
            return Few(cached, largest=largest), {"bytes": largest * BYTES_OF_ONE, "largest": largest}
        return None, {}
