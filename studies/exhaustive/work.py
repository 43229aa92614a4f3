"""The table of the study: every architecture near one budget, distilled at every rung and retrained."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.distillation.targets.batch import Targets
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages.preparation import load, prepare
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Architecture
from studies.bench.bench import Shuffled
from studies.bench.results import Results, Row

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("label", "seed", "rung"))
SEEDS = (0, 1)
#: Tokens of rung 1, of rung 2 and of retraining: each four times those before.
TOKENS = (12_288, 49_152, 196_608)
FINAL = len(TOKENS)
#: Of the embedded teacher on the same validation blocks, nats per token.
TEACHER_LOSS = 2.2350
#: The demo's budget; KV heads are kept, so that the space can be tried whole.
FLAGS = ("--budget", "1M", "--keep", "kv_heads", "--basis", "weighted", "--objectives", "loss,latency")


def resolved() -> Resolved:
    """The run whose space is tried."""
    rungs = [str(tokens) for tokens in TOKENS[:-1]]
    return resolve(read_flags([*FLAGS, "--rung-tokens", *rungs, "--retrain-tokens", str(TOKENS[-1])]))


def order() -> list[Architecture]:
    """Every architecture, shuffled, so that what is done is a fair part of what is to be done."""
    architectures = list(resolved().space.architectures)
    places = np.random.default_rng(0).permutation(len(architectures))
    return [architectures[place] for place in places]


def work(seed: int) -> None:
    """Train what is missing of one seed, in this process."""
    torch.set_num_threads(1)
    run, console = resolved(), Console(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher, corpus = load(run.config, console)
        bench = prepare(run, teacher, corpus, RunDirectory(Path(folder)), console)
        text = Shuffled(bench.targets, seed)
        for architecture in order():
            for rung in _missing(architecture, seed):
                row = {"label": architecture.label, **architecture.sizes(), "seed": seed, "rung": rung}
                RESULTS.add({**row, **_measured(bench, architecture, rung, text)})
            print(f"seed {seed}: {architecture.label}", file=sys.stderr, flush=True)


def _missing(architecture: Architecture, seed: int) -> Iterator[int]:
    """Rung 0 is the same for every seed."""
    runs = [{"label": architecture.label, "seed": seed, "rung": rung} for rung in range(FINAL + 1)]
    yield from (run["rung"] for run in RESULTS.missing(runs))


def _measured(bench: RunContext, architecture: Architecture, rung: int, text: Targets) -> Row:
    """Losses in the precision in which the search compares them; of the retrained model in float32 too."""
    student = bench.extract(architecture)
    row: dict[str, Any] = {"parameters": student.num_parameters()}
    if rung == 0:
        return {**row, "loss": bench.loss(student), "latency_ms": bench.latency(student).total_ms}
    tokens = TOKENS[rung - 1]
    times = 6 if rung == FINAL else 2
    outcome = bench.train(student, tokens, text, lambda _: None, validations=times)
    row |= {"loss": outcome.curve[-1][1], "tokens": outcome.tokens, "curve": outcome.curve}
    if rung == FINAL:
        row["exact_loss"] = bench.exact_loss(student)
    return {**row, "seconds": round(outcome.seconds, 1)}
