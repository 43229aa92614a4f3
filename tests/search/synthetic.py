"""A search without models: the demo teacher's space, and an evaluator that knows every answer at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from search.rungs.evaluation import CandidateError, Evaluation, FinishedTrial
from search.rungs.loop import Search, SearchTask
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from search.settings.objectives import UNITS, measured_bounds
from search.storage.storage import open_study
from search.storage.workers import Workers
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.axes.polynomial import Polynomial
from space.counting.budget import Budget
from space.counting.counting import parameter_polynomial
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import baselines
from space.enumeration.search_space import SearchSpace
from space.verification.verification import verified_axis_map
from studies.demo.train import CONFIG

Fails = Callable[[Architecture, int], bool]
_CONFIG = RunConfig(
    name="synthetic",
    teacher="studies/demo/teacher",
    revision="",
    phases=(),
    passed_over=(),
    taught_by="",
    taught_by_revision="",
    teacher_correction=0,
    budget=1_000_000,
    budget_of="total",
    budget_dtype="float32",
    tolerance=0.02,
    keep=(),
    sizes=(),
    multiples="fine",
    basis="coordinate",
    width_by="activations",
    aggregation="l2,mean",
    depth_by="influence",
    rounds=1,
    rounds_order="together",
    repair=(),
    data=("stdlib",),
    learn="all",
    long_block=0,
    long_share=0.0,
    block=128,
    calibration_blocks=4,
    validation_blocks=4,
    distillation_blocks=16,
    objectives=("loss", "latency"),
    bounds=(),
    sampler="tpe",
    trials=12,
    rung_tokens=(1000, 2000),
    rung_candidates=(6, 3),
    search="rungs",
    search_tokens=0,
    hours=0.0,
    retrain_tokens=4000,
    promote=1,
    retrain_baselines=False,
    batch_blocks=2,
    loss="forward-kl",
    temperature=1.0,
    states=(),
    targets="auto",
    schedule="cosine",
    rate="rule",
    benchmarks=(),
    least=(),
    task_samples=500,
    storage="",
    seed=0,
    device="cpu",
    dtype="float32",
    optimizer="adamw",
    keep_towers=False,
    trust_remote_code=False,
)


@cache
def demo_map() -> AxisMap:
    """The axes of the demo teacher."""
    return verified_axis_map(CONFIG)


@cache
def demo_space(budget: int = 1_000_000, tolerance: float = 0.02) -> SearchSpace:
    """Every architecture of the demo teacher near a budget; 69 by default."""
    return enumerate_space(demo_map(), Budget(budget, tolerance))


@cache
def counted() -> Polynomial:
    """Parameters of the demo teacher's students."""
    return parameter_polynomial(demo_map())


def figures(architecture: Architecture, rung: int) -> dict[str, float]:
    """Every objective of an architecture: smooth in the sizes, a little noisy, lower on higher rungs."""
    a = architecture
    noise = zlib.crc32(f"{a.label} {rung}".encode()) / 2**32
    loss = 2 + 40 / a.hidden + 30 / a.mlp + 1 / a.heads + 2 / a.layers - 0.3 * rung + 0.05 * noise
    return {
        "loss": loss,
        "latency": 1.5 * a.layers + 0.01 * a.hidden + 0.1 * a.heads,
        "parameters": float(counted().of(a)),
        "memory": 4e6 + 1e3 * a.kv_heads * a.layers,
        "flops": 2e6 + 50.0 * a.heads * a.layers,
    }


def evaluation(architecture: Architecture, rung: int) -> Evaluation:
    """What ``figures`` says, as a rung is told it."""
    found = figures(architecture, rung)
    curve = [(1000 * step, found["loss"] + 1 / step) for step in range(1, rung + 2)] if rung else []
    return Evaluation(found, 1000 * rung, curve, 0.5 * rung, {"prefill_ms": 0.25})


def run_config(**changes: Any) -> RunConfig:
    """A configuration of three rungs on the demo teacher."""
    return replace(_CONFIG, **changes)


class Evaluator:
    """Knows every answer; remembers what it was asked.

    Args:
        fails: whether a candidate fails at a rung.
        stop_at: the evaluation, counted from 0, in which the process is killed.
    """

    def __init__(self, fails: Fails = lambda architecture, rung: False, stop_at: int | None = None) -> None:
        self.fails, self.stop_at = fails, stop_at
        self.asked: list[tuple[int, Architecture]] = []

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """What ``figures`` says."""
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((rung, architecture))
        if self.fails(architecture, rung):
            raise CandidateError(f"no luck at rung {rung}")
        return evaluation(architecture, rung)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """There is nothing to let go of."""


#: Of searches that are given none; tests put theirs in its place.
default_evaluator = Evaluator()


def open_rungs_in(storage: BaseStorage, config: RunConfig, space: SearchSpace) -> list[Rung]:
    """The rungs of a configuration in a storage that is open."""
    names = [f"{config.name}/r{index}" for index in range(config.rungs)]
    studies = [open_study(storage, name, config.objectives, UNITS, "a space") for name in names]
    bounds = measured_bounds(config.upper_bounds)
    return [
        Rung(index, study, space, config.objectives, bounds=bounds) for index, study in enumerate(studies)
    ]


def make_search(
    config: RunConfig,
    space: SearchSpace,
    rungs: list[Rung] | None = None,
    evaluator: Evaluator | None = None,
    workers: Workers | None = None,
) -> Search:
    """A search that needs no models; in memory unless rungs are given."""
    task = SearchTask(config, space, baselines(space, demo_map().teacher))
    rungs = rungs or open_rungs_in(InMemoryStorage(), config, space)
    return Search(task, rungs, evaluator or default_evaluator, Console(quiet=True), workers)


def records_of(rungs: list[Rung]) -> list[FinishedTrial]:
    """Every finished trial of every rung."""
    return [record for rung in rungs for record in rung.records()]
