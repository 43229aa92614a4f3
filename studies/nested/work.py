"""The runs of the study: a pool of architectures trained in shared weights, each way on several texts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evaluators.distillation.loop import TrainingMonitor, distil_nested
from evaluators.distillation.schedule import Schedule, ScheduleShape
from evaluators.distillation.targets.batch import Targets
from evaluators.metrics.loss import validation_loss
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages.preparation import load, prepare
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.cutting.repair import Repair
from space.cutting.shared_weights import SharedWeights
from studies.bench.bench import Shuffled
from studies.bench.results import Results, Row
from studies.exhaustive.work import FLAGS, TOKENS
from studies.nested.pool import Pool

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("way", "seed", "tokens", "label"))
SEEDS = (0, 1, 2)
#: Of the shared training, and of the retraining of what is chosen.
SEARCHED, RETRAINED = 600_000, TOKENS[-1]
#: How often all are scored, and the pool is halved.
STAGES = 4
#: Every so many validation blocks one is scored on: 49 architectures take as long as a sixth of the training.
_EVERY = 4


@dataclass(frozen=True)
class Way:
    """One form of the training."""

    rate: float = 3e-3
    """Peak learning rate."""
    shape: ScheduleShape = ScheduleShape.WSD
    narrows: bool = True
    """Whether the pool is halved at every quarter."""
    repaired: bool = False
    """Whether slices are repaired for what is cut, at every step anew, with the weights as they are then."""


WAYS = {
    "as it is": Way(),
    "repaired": Way(repaired=True),
    "half the rate": Way(rate=1.5e-3),
    "twice the rate": Way(rate=6e-3),
    "cosine": Way(shape=ScheduleShape.COSINE),
    "the whole pool": Way(narrows=False),
}


def resolved() -> Resolved:
    """The run whose space is tried, with text for the training and the retraining after it."""
    tokens = SEARCHED + RETRAINED
    return resolve(read_flags([*FLAGS, "--rung-tokens", str(TOKENS[0]), "--retrain-tokens", str(tokens)]))


class Subject:
    """The teacher of the exhaustive study, ranked; its pool, and its text in the order of a seed."""

    def __init__(self, folder: Path) -> None:
        self.run, console = resolved(), Console(quiet=True)
        teacher, corpus = load(self.run.config, console)
        self.bench: RunContext = prepare(self.run, teacher, corpus, RunDirectory(folder), console)
        self.architectures: list[Architecture] = list(self.run.space.architectures)

    def shared(self, way: Way) -> SharedWeights:
        """Fresh shared weights."""
        bench = self.bench
        return SharedWeights(
            bench.sorted_weights.tensors,
            bench.axis_map,
            bench.ranking,
            bench.repair if way.repaired else Repair(),
        )

    def loss(self, model: PreTrainedModel) -> float:
        """Of a slice, on some validation blocks, in the precision in which the search compares."""
        with self.bench.accelerator.autocast():
            return validation_loss(model, self.bench.corpus.validation[::_EVERY])


def work(seed: int, ways: Sequence[str], tokens: int, chosen: int) -> None:
    """Run what is missing of one seed, in this process.

    Args:
        seed: of the order of the text and of the draws.
        ways: by their names.
        tokens: of each shared training.
        chosen: how many are retrained after it.
    """
    torch.set_num_threads(1)
    missing = RESULTS.missing({"way": way, "seed": seed, "tokens": tokens, "label": ""} for way in ways)
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder))
        for number, about in enumerate(missing, 1):
            for row in trained(subject, str(about["way"]), seed, tokens, chosen):
                RESULTS.add(row)
            print(f"seed {seed}, {number} of {len(missing)}: {about['way']}", file=sys.stderr, flush=True)


def trained(subject: Subject, name: str, seed: int, tokens: int, chosen: int) -> list[Row]:
    """Train a pool one way; losses of all slices at every stage, and of what is retrained."""
    way, config = WAYS[name], subject.run.config
    shared = subject.shared(way)
    pool, rows = Pool(subject.architectures, seed), list[Row]()
    text = Shuffled(subject.bench.retraining_targets, seed)
    schedule = Schedule(
        tokens=tokens,
        blocks=config.batch_blocks,
        block=config.block,
        peak_rate=way.rate,
        shape=way.shape,
        warm_up_steps=20,
    )
    about = {"way": name, **asdict(way), "seed": seed}

    def score(_: PreTrainedModel) -> float:
        step = -(-schedule.steps * (len(rows) + 1) // STAGES)
        losses = losses_of(subject, shared)
        rows.append({**about, "tokens": step * schedule.tokens_per_step, "label": "", "losses": losses})
        if way.narrows:
            pool.narrow(losses, step)
        return min(losses.values())

    rows_before = {**about, "tokens": 0, "label": "", "losses": losses_of(subject, shared)}
    monitor = TrainingMonitor(validate=score, times=STAGES)
    outcome = distil_nested(shared, pool.draw, text, schedule, subject.bench.accelerator, monitor)
    rows[-1] |= {"tokens": tokens, "seconds": round(outcome.seconds, 1)}
    best = sorted(pool.members, key=lambda one: rows[-1]["losses"][one.label])[:chosen]
    first = schedule.steps * schedule.blocks
    finals = [{**about, **retrained(subject, shared, one, later(text, first))} for one in best]
    return [rows_before, *rows, *({**row, "tokens": tokens} for row in finals)]


def later(text: Shuffled, first: int) -> Shuffled:
    """The same blocks from a later one on, those before it last."""
    found = Shuffled(text.targets, 0)
    found.order, found.tokens = text.order.roll(-first), text.tokens.roll(-first, 0)
    return found


def losses_of(subject: Subject, shared: SharedWeights) -> dict[str, float]:
    """Of the slices of all architectures, by label."""
    losses = {}
    with torch.no_grad():
        for architecture in subject.architectures:
            with shared.as_student(architecture) as student:
                losses[architecture.label] = subject.loss(student)
    return losses


def retrained(subject: Subject, shared: SharedWeights, architecture: Architecture, text: Targets) -> Row:
    """Cut a student from the trained weights and retrain it, on text that it has not read."""
    bench, student = subject.bench, shared.extract(architecture)
    before = bench.exact_loss(student)
    outcome = bench.train(student, RETRAINED, text, lambda _: None, validations=2)
    loss = bench.exact_loss(student)
    return {
        "label": architecture.label,
        "before": before,
        "loss": loss,
        "retraining": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
    }
