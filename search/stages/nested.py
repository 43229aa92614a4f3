"""The nested search: one training of shared weights, and candidates scored as slices of them.

The training has as many stages as the search has rungs above rung 0. A stage trains the candidates that have
entered its rung, in turn; then each is scored. The state at the end of a stage is the checkpoint from which
the next goes on, so a search that is interrupted goes on from its last checkpoint and comes to the same end.
Of several workers one trains, and all score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from evaluators.distillation.checkpoint import load_parameters, read_metadata, read_tensors
from evaluators.distillation.loop import TrainingMonitor, distil_nested
from evaluators.distillation.nested import Draw
from evaluators.distillation.optimizers import OptimizerName, convert_weights
from evaluators.distillation.saving import Checkpointing
from evaluators.distillation.schedule import DivergenceError, Schedule, ScheduleShape
from evaluators.distillation.training import Advance
from search.rungs.evaluation import CandidateError, Evaluation
from search.rungs.rung import Rung
from search.settings.config import NESTED
from search.settings.methods import loss_of
from search.settings.resolved import Resolved
from search.stages.run_context import RunContext
from search.stages.trial import evaluate_candidate, measured_costs
from search.storage.run_directory import RunDirectory
from search.storage.workers import Workers
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.cutting.shared_weights import SharedWeights
from space.input_error import InputError

#: Of the shared weights' names in a checkpoint.
_PREFIX = "model.shared."


def nested_path(directory: Path) -> Path:
    """Return the file of the shared weights and their training."""
    return directory / "nested" / "shared.safetensors"


def check_nested_tries(resolved: Resolved, directory: RunDirectory) -> None:
    """Check that no architecture is added to a pool whose training has begun.

    Raises:
        InputError: one is.
    """
    begun = nested_path(directory.path).exists() or directory.summary.exists()
    if resolved.config.search == NESTED and resolved.tries and begun:
        raise InputError(
            "A nested search trains its candidates together from the start",
            f"--try names {len(resolved.tries)}, and the training in {directory.path} has begun",
            "Leave --try out, or begin another run with --study-name",
        )


def fresh_weights(context: RunContext) -> SharedWeights:
    """Return the shared weights before any training, on the device of the run."""
    shared = SharedWeights(context.sorted_weights.tensors, context.axis_map, context.ranking)
    return shared.to(context.teacher.residence.device)


def trained_weights(context: RunContext) -> SharedWeights:
    """Return the shared weights as the last stage left them."""
    shared = fresh_weights(context)
    _load(shared, nested_path(context.directory), context.config.optimizer)
    return shared


def _load(shared: SharedWeights, path: Path, optimizer: str) -> None:
    convert_weights(shared, OptimizerName(optimizer))
    load_parameters(shared, read_tensors(path, _PREFIX))
    shared.forget()


def drawn_in_turn(pool: Sequence[Architecture], seed: int, begins: int, step: int) -> Architecture:
    """Return the architecture of a step: each of the pool once before any comes again, in a drawn order.

    Args:
        pool: the candidates of the stage, in an order that all processes agree on.
        seed: of the run.
        begins: the first step of the stage.
        step: counted from the begin of the whole training.
    """
    rounds, place = divmod(step - begins, len(pool))
    order = np.random.default_rng((seed, begins, rounds)).permutation(len(pool))
    return pool[int(order[place])]


@dataclass
class NestedEvaluator:
    """Evaluates candidates as slices of shared weights, in the context of a run."""

    context: RunContext
    workers: Workers
    console: Console
    _shared: SharedWeights | None = field(default=None, init=False)
    _stage: int = field(default=0, init=False)

    def prepare(self, rungs: Sequence[Rung], index: int) -> None:
        """Train the shared weights up to the end of a stage, unless they are there; one worker does.

        Args:
            rungs: all rungs, rung 0 first.
            index: of the rung, all of whose candidates have entered.
        """
        if index == 0 or self._stage == index:
            return
        pool = sorted(rungs[index].entered(), key=lambda one: one.label)
        with self.workers.exclusive_or_wait(f"nested-{index}", self.console.say):
            self._train(index, pool)
        self._stage = index

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """Evaluate a candidate, see ``Evaluator``; above rung 0 it is not trained, but scored."""
        context, bounds = self.context, self.context.config.upper_bounds
        if rung == 0:
            return evaluate_candidate(context, architecture, rung, advance, bounds)
        assert self._shared is not None, "the weights are trained before candidates are scored"
        tokens = context.config.rung_tokens[rung - 1]
        with torch.no_grad(), self._shared.as_student(architecture) as student:
            values, details = measured_costs(context, architecture, student)
            loss = context.loss(student)
            key = f"{architecture.label} nested {rung} {context.ranking.fingerprint}"
            of_tasks = context.tasks.measure(student, key)
        if not math.isfinite(loss):
            raise CandidateError(f"diverged: the validation loss is {loss}")
        values |= {"loss": loss, **of_tasks[0]}
        return Evaluation(values, tokens, [(tokens, loss)], details=details | of_tasks[1])

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Nothing is stored for a candidate."""

    def _train(self, index: int, pool: Sequence[Architecture]) -> None:
        config, path = self.context.config, nested_path(self.context.directory)
        schedule = self._schedule()
        begins, ends = (self._step_of(stage, schedule) for stage in (index - 1, index))
        shared = self._shared or fresh_weights(self.context)
        metadata = read_metadata(path)
        if metadata is not None and metadata["step"] >= ends:  # by another worker, or before an interruption
            _load(shared, path, config.optimizer)
            self._shared = shared
            return
        path.parent.mkdir(exist_ok=True)
        text = f"stage {index} of nested training, {len(pool)} candidates"
        tokens = (ends - begins) * schedule.tokens_per_step
        with self.console.work(text, "distil", tokens) as advance:
            done = begins * schedule.tokens_per_step

            def advance_in_stage(more: int) -> None:
                """Tell this stage's tokens alone; a resumed training tells at first what it has in all."""
                nonlocal done
                advance(max(0, more - done) if done else more)
                done = 0

            def draw(step: int) -> Architecture:
                return drawn_in_turn(pool, config.seed, begins, max(begins, step))

            self._distil(shared, draw, schedule, ends, advance_in_stage)
        self._shared = shared

    def _distil(
        self, shared: SharedWeights, draw: Draw, schedule: Schedule, ends: int, advance: Advance
    ) -> None:
        """Train up to a step.

        Raises:
            InputError: the training diverged twice, or not even one block fits into memory.
        """
        config = self.context.config
        rule, remedy = "The shared weights of a nested search have to train to the end", "take --search rungs"
        try:
            distil_nested(
                shared,
                draw,
                self.context.targets,
                schedule,
                self.context.accelerator,
                TrainingMonitor(advance=advance),
                Checkpointing(path=nested_path(self.context.directory), key=self._key),
                loss=loss_of(config),
                optimizer=OptimizerName(config.optimizer),
                micro_batch=self.context.placement.micro_batch,
                until=ends,
            )
        except DivergenceError as error:
            raise InputError(rule, f"they diverged: {error}", f"Name a lower --rate, or {remedy}") from None
        except torch.OutOfMemoryError as error:
            raise InputError(rule, str(error), f"Take --optimizer adamw-8bit, or {remedy}") from None

    @property
    def _key(self) -> str:
        return f"nested {self.context.ranking.fingerprint}"

    def _step_of(self, stage: int, schedule: Schedule) -> int:
        """Return the step at which a stage ends."""
        return -(-schedule.steps * stage // len(self.context.config.rung_tokens))

    def _schedule(self) -> Schedule:
        """One schedule for all stages, constant and then falling, at the rate of a student of the budget."""
        config = self.context.config
        tokens = config.rung_tokens[-1]
        parameters = int(self.context.space.parameters.mean())
        return Schedule(
            tokens=tokens,
            blocks=config.batch_blocks,
            block=config.block,
            peak_rate=self.context.rates.of(config, parameters, tokens),
            shape=ScheduleShape.WSD,
        )
