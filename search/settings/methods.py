"""Convert the configuration of importance, distillation and precision into the evaluators' types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.states import States, states_at, states_named
from evaluators.distillation.targets.batch import FormName, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import TextTargets
from evaluators.distillation.targets.long_tail import LongTail
from evaluators.importance.iterative import RoundPhase
from evaluators.importance.method import Aggregate, Depth, Method, Width
from evaluators.tasks.task import Task, tasks_of
from search.settings.config import RunConfig
from space.input_error import InputError


def weights_dtype(config: RunConfig) -> torch.dtype:
    """Return the dtype of the teacher in memory: float32 on a CPU, where autocast suffices for bfloat16."""
    half = config.device.startswith("cuda") and config.dtype == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def accelerator_of(config: RunConfig) -> Accelerator:
    """Return the Accelerator with the device and the precision of training."""
    return Accelerator(
        cpu=config.device == "cpu", mixed_precision="bf16" if config.dtype == "bfloat16" else "no"
    )


def method_of(config: RunConfig) -> Method:
    """Return how units and layers are scored, in the coordinate basis.

    Raises:
        InputError: the aggregation cannot be parsed, or ``--depth-by`` names an unknown benchmark.
    """
    batch, sequence = _parse_aggregation(config.aggregation)
    depth, greedy, benchmark = _parse_depth(config)
    return Method(
        width=Width(config.width_by),
        batch=batch,
        sequence=sequence,
        depth=depth,
        greedy=greedy,
        benchmark=benchmark,
        rounds=config.rounds,
        seed=config.seed,
        bfloat16=config.dtype == "bfloat16",
    )


def phases_of(config: RunConfig) -> tuple[RoundPhase, ...]:
    """Return what a round of scoring and pruning does, in order."""
    return tuple(RoundPhase(name) for name in config.rounds_order.split("-"))


def in_rounds(config: RunConfig) -> bool:
    """Whether the teacher is ranked in rounds of scoring and pruning, instead of once."""
    return (config.rounds, phases_of(config)) != (1, (RoundPhase.TOGETHER,))


def _parse_aggregation(text: str) -> tuple[Aggregate, Aggregate]:
    try:
        batch, sequence = map(Aggregate, text.split(","))
    except ValueError:
        raise InputError(
            "--aggregation takes how absolute activations are put together along batch and sequence",
            f"{text!r} was given",
            "Write two of mean, l2 and var, such as --aggregation l2,mean",
        ) from None
    return batch, sequence


#: What may stand before the name of a task, and the method that it makes.
_TASK_PREFIXES = {"block-": Depth.BLOCK_BENCHMARK, "greedy-": Depth.BENCHMARK, "": Depth.BENCHMARK}


def depth_task(config: RunConfig) -> Task | None:
    """Return the task by which layers are scored, which may be one of the run; None if no task scores them.

    Raises:
        InputError: it is unknown, or its file cannot be read.
    """
    if _plain_depth(config.depth_by):
        return None
    name = _split_prefix(config.depth_by)[1]
    return next((task for task in tasks_of(config.benchmarks) if task.name == name), None) or Task.of(name)


def _plain_depth(text: str) -> tuple[Depth, bool] | None:
    """Return the method and whether it is greedy; None if the text names a task."""
    plain = {depth.value: (depth, False) for depth in Depth if "benchmark" not in depth.value}
    single = (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE)
    return (plain | {f"greedy-{depth}": (depth, True) for depth in single}).get(text)


def _split_prefix(text: str) -> tuple[str, str]:
    prefix = next(prefix for prefix in _TASK_PREFIXES if text.startswith(prefix))
    return prefix, text.removeprefix(prefix)


def _parse_depth(config: RunConfig) -> tuple[Depth, bool, str]:
    """Parse ``--depth-by``: the method, whether it is greedy, and the task with what its scores depend on."""
    if (found := _plain_depth(config.depth_by)) is not None:
        return *found, ""
    prefix, task = _split_prefix(config.depth_by)[0], depth_task(config)
    assert task is not None
    about = f"{task.name} ({config.task_samples:,} examples, {task.version})"
    return _TASK_PREFIXES[prefix], prefix == "greedy-", about


def loss_of(config: RunConfig) -> Loss:
    """Return the distillation loss on the logits.

    Raises:
        InputError: the configured loss cannot be parsed.
    """
    return Loss.parse(config.loss, config.temperature)


def states_asked(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the states without duplicates; ``auto`` and ``none`` mean no states."""
    return tuple(name for name in dict.fromkeys(names) if name not in ("auto", "none"))


def states_of(config: RunConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> States | None:
    """Return the states of student and teacher to compare, or None if there are none."""
    return states_named(config.states, _layers(student), _layers(teacher))


def check_states(config: RunConfig, teacher: PreTrainedModel) -> None:
    """Check that hooks can read the configured states in the teacher's class.

    Raises:
        InputError: they cannot; the message names the class and what it lacks.
    """
    states = states_of(config, teacher, teacher)
    if states is not None:
        with states_at(teacher, states.of_teacher):
            pass


def targets_as_dict(targets: Targets) -> dict[str, Any]:
    """Return the form of the targets, their tokens and their bytes on disk, for the summary."""
    form, size = FormName.LIVE.value, 0
    if isinstance(targets, LongTail):
        targets = targets.short
    if isinstance(targets, CachedTargets):
        form = str(targets.form.description["form"])
        size = targets.records.size
    elif isinstance(targets, TextTargets):
        form = "text"
    return {"form": form, "tokens": targets.tokens.numel(), "bytes": size}


def _layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)
