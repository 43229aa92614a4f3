"""Resolve flags into a configuration and a search space, rejecting all invalid input before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from evaluators.distillation.optimizers import OptimizerName
from evaluators.huggingface.library_output import short_message
from evaluators.importance.from_disk import turned_from_disk
from evaluators.metrics.capacity import capacity_of
from evaluators.metrics.pace import Pace
from evaluators.teacher.gguf_file import directory_of_gguf, is_gguf
from evaluators.teacher.weights import stored_dtype, weight_files
from evaluators.teacher.written_once import cache_directory
from search.settings.bracket_plan import BracketPlan, plan_bracket, plan_nested, rungs_up_to
from search.settings.config import NESTED, RunConfig
from search.settings.costs import Costs, pace_estimate, pace_of, within_bounds, workload_of
from search.settings.flag_rules import parse_count, parse_memory
from search.settings.flags import Flags
from search.settings.hours import HoursAsked, amounts_given, config_within
from search.settings.ledger import choose, memory_of
from search.settings.methods import method_of, states_asked
from search.settings.multiples import enumerated, multiples_of
from search.settings.objectives import bounds_of_config, read_bounds
from search.settings.optimizer import AUTO as OPEN
from search.settings.optimizer import eight_bits_refused, optimizer_for, precision_for
from search.settings.rates import rate_of
from search.settings.repairs import repairs_of
from search.settings.resolved import Resolved
from search.settings.run_name import name_of
from search.settings.run_time import AUTO
from search.settings.scale import (
    default_device,
    default_dtype,
    device_is_here,
    scale_for,
    search_tokens_of,
)
from search.settings.step import long_fields, step_of
from search.settings.task_objectives import check_tasks, least_of_config, named_objectives
from search.settings.teachers import (
    EMBEDDED,
    AvailableTeacher,
    Training,
    default_texts,
    smallest_above,
    teacher_for,
    training_phases,
    trainings_of,
)
from search.settings.towers import check_towers
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, BudgetText, Measure
from space.counting.counting import budget_polynomial, parameter_polynomial
from space.cutting.basis import BasisName
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError
from space.verification.verification import verified_axis_map

#: The rotated basis that is tried against coordinates: the better one in studies/bases.
_ROTATED = BasisName.WEIGHTED


def resolve(flags: Flags) -> Resolved:
    """Resolve the flags, choosing everything that they leave open.

    Raises:
        InputError: the run cannot be done.
    """
    return resolve_from(flags, teachers_named(flags))


def teachers_named(flags: Flags) -> list[Training]:
    """Return the teachers that the flags name, or else the one that suits the budget.

    Raises:
        InputError: a flag is invalid (checks that need no teacher come first), or a teacher cannot be used.
    """
    measure = Measure(flags.budget_of)
    text = BudgetText.parse(flags.budget, measure)
    check_tasks(flags.objectives, read_bounds(flags.max), flags.benchmarks, flags.task_samples, flags.min)
    _device(flags)
    models = [_as_directory(model) for model in flags.model]
    phases = training_phases(models or (_default_teacher(text, measure),), flags.revision)
    return trainings_of(phases, flags.trust_remote_code)


def resolve_from(flags: Flags, trainings: Sequence[Training], sharing: int = 1) -> Resolved:
    """Resolve the flags as ``resolve`` does, but with the nearest of the given teachers.

    Args:
        flags: the user's flags.
        trainings: the teachers.
        sharing: number of runs that share the hours.

    Raises:
        InputError: the run cannot be done.
    """
    text = BudgetText.parse(flags.budget, Measure(flags.budget_of))
    training, others = nearest_teacher(flags, trainings)
    basis = BasisName.COORDINATE if flags.basis == AUTO else BasisName(flags.basis)
    axis_map = verified_axis_map(training.config, basis)
    parameters = parameter_polynomial(axis_map).of(axis_map.teacher)
    budget, amount = budget_of(flags, text, axis_map)
    axis_map, whole = enumerated(flags, axis_map, budget, budget.amount / amount * parameters)
    device = _device(flags)
    costs = Costs(axis_map, workload_of(device), _stored_bytes(training.phases[-1].id, training.config))
    space = within_bounds(whole, costs, read_bounds(flags.max))
    run = _config(flags, training, axis_map, space, budget, device)
    repairs = repairs_of(flags, axis_map, run.calibration_blocks * run.block, flags.out / run.name)
    run = replace(run, repair=repairs, passed_over=tuple(str(one.phase) for one in others))
    method_of(run)
    given = amounts_given(flags)
    resolved = Resolved(
        run, axis_map, space, parameters, basis, whole, costs, flags.try_, passed_over=others, given=given
    )
    resolved.by_hand()
    check_towers(resolved)
    turned = _in_rotated_basis(resolved) if flags.basis == AUTO else None
    run = replace(run, basis=AUTO if turned else basis.value)
    resolved = replace(resolved, config=run, turned=replace(turned, config=run) if turned else None)
    placed = _placed(resolved, flags, open_ones=flags.optimizer == OPEN)
    found = _within_hours(placed, flags, sharing)
    return placed if found is placed else _placed(found, flags, open_ones=False)


def _within_hours(resolved: Resolved, flags: Flags, sharing: int) -> Resolved:
    """Fit the amounts that the user left open into the hours, or into a night.

    Raises:
        InputError: the hours are too few, or several processes train each student together.
    """
    axis_map, space, config = resolved.axis_map, resolved.space, resolved.config
    device = config.device
    if not device_is_here(device):
        if flags.hours is None:
            return resolved
        raise InputError(
            "Hours are counted by the pace of a device",
            f"--hours {flags.hours:g} was given for a card that is not here",
            "Say how much with --search-tokens and --retrain-tokens",
        )

    def measure(one: RunConfig) -> Pace:
        optimizer = OptimizerName(one.optimizer)
        return pace_of(axis_map, space, device, one.dtype, one.batch_blocks, one.block, optimizer)

    estimate = partial(pace_estimate, axis_map, space, device, config.dtype)
    saved = flags.out / config.name / "config.toml"
    hours = HoursAsked(flags.hours, sharing)
    found, pace = config_within(hours, config, resolved.given, resolved.work, estimate, measure, saved)
    return resolved if found is config else replace(resolved.with_amounts(found), pace=pace)


def _placed(resolved: Resolved, flags: Flags, *, open_ones: bool) -> Resolved:
    """Return the run with the placement, and the optimiser if it is open, that the memory allows.

    Raises:
        InputError: the run does not fit.
    """
    told = parse_memory(flags.device_memory) if flags.device_memory else None
    turned = replace(resolved.turned, device_memory=told) if resolved.turned else None
    resolved = replace(resolved, device_memory=told, turned=turned)
    memory = memory_of(resolved, flags.out)
    given = OptimizerName(resolved.config.optimizer)
    open_ones = open_ones and eight_bits_refused(flags, resolved.config.device) is None
    optimizers = [given, OptimizerName.ADAMW_8BIT] if open_ones else [given]
    capacity = capacity_of(torch.device(resolved.config.device), told)
    placement, optimizer = choose(memory, capacity, optimizers, by_layers=True)
    if optimizer is not given:
        dtype = precision_for(optimizer) or resolved.config.dtype
        resolved = resolved.with_config(optimizer=optimizer.value, dtype=dtype)
    turned = resolved.turned
    if turned is not None and placement.layer_by_layer and not turned_from_disk(turned.axis_map):
        resolved, turned = resolved.with_config(resolved.teaching_map, basis=resolved.basis.value), None
    turned = replace(turned, placement=placement) if turned else None
    return replace(resolved, placement=placement, turned=turned)


def nearest_teacher(
    flags: Flags, trainings: Sequence[Training]
) -> tuple[Training, tuple[AvailableTeacher, ...]]:
    """Return the smallest teacher above the budget, and the teachers that are not used.

    Raises:
        InputError: no teacher is above the budget, or the budget is a percentage of one of several teachers.
    """
    if len(trainings) == 1:
        return trainings[0], ()
    text = BudgetText.parse(flags.budget, Measure(flags.budget_of))
    if text.relative:
        raise InputError(
            "A percentage is a share of one teacher",
            f"{flags.budget} was asked, and models of {len(trainings)} architectures were named",
            "Write the budget as a number, or name one --model",
        )
    sized = [(training, budget_of(flags, text, verified_axis_map(training.config))) for training in trainings]
    teachers = [AvailableTeacher(training, whole) for training, (_, whole) in sized]
    taken = smallest_above(teachers, sized[0][1][0])
    return taken.training, tuple(one for one in teachers if one is not taken)


def _config(
    flags: Flags,
    training: Training,
    axis_map: AxisMap,
    space: SearchSpace,
    budget: Budget,
    device: str,
) -> RunConfig:
    """Return the complete configuration from flags and defaults."""
    (*_, (teacher, revision)), config = training
    bounds = read_bounds(flags.max)
    parameters = parameter_polynomial(axis_map).of(axis_map.teacher)
    scale = scale_for(parameters)
    retrain = _tokens(flags.retrain_tokens, "--retrain-tokens", scale.retrain_tokens)
    rungs = tuple(parse_count(t, "--rung-tokens") for t in flags.rung_tokens)
    rungs = rungs or rungs_up_to(scale.first_rung_tokens, retrain)
    block, batch_blocks = step_of(flags, scale, config, max(rungs))
    optimizer = optimizer_for(flags, device)
    dtype = flags.dtype or precision_for(optimizer) or default_dtype(device, parameters)
    search_tokens = search_tokens_of(flags, scale, rungs, len(space))
    bracket = _bracket(flags, search_tokens, rungs, len(space))
    return RunConfig(
        name=name_of(flags, teacher),
        teacher=teacher,
        revision=revision or "",
        phases=tuple(map(str, training.phases)) if len(training.phases) > 1 else (),
        passed_over=(),
        taught_by="",
        taught_by_revision="",
        budget=budget.amount,
        budget_of=budget.of.value,
        budget_dtype=_budget_dtype(flags, config),
        tolerance=flags.tolerance,
        keep=flags.keep,
        sizes=flags.sizes,
        multiples=multiples_of(axis_map),
        **_importance_fields(flags),
        data=flags.data or default_texts(teacher, revision or None),
        learn=flags.learn,
        **long_fields(flags, config, block, batch_blocks),
        block=block,
        calibration_blocks=flags.calibration_samples or scale.calibration_blocks,
        validation_blocks=scale.validation_blocks,
        distillation_blocks=math.ceil(max(*rungs, *bracket.rung_tokens, retrain) / block),
        objectives=named_objectives(flags.objectives, bounds, flags.benchmarks)[0],
        bounds=bounds_of_config(bounds),
        search=flags.search,
        sampler=flags.sampler,
        trials=bracket.trials,
        rung_tokens=bracket.rung_tokens,
        rung_candidates=bracket.rung_candidates,
        search_tokens=search_tokens,
        hours=0.0,
        retrain_tokens=retrain,
        promote=min(flags.promote or scale.promote, bracket.rung_candidates[-1]),
        retrain_baselines=parameters < 100e6 if flags.retrain_baselines is None else flags.retrain_baselines,
        batch_blocks=batch_blocks,
        **_distillation_fields(flags),
        **_execution_fields(flags, device, dtype, optimizer),
    )


def _bracket(flags: Flags, search_tokens: int, rungs: tuple[int, ...], architectures: int) -> BracketPlan:
    if flags.search == NESTED:
        return plan_nested(search_tokens, architectures, flags.trials)
    return plan_bracket(search_tokens, rungs, architectures, flags.trials, bool(flags.rung_tokens))


def _importance_fields(flags: Flags) -> dict[str, Any]:
    """Return the fields about basis, importance and repair."""
    return {
        "basis": flags.basis,
        "width_by": flags.width_by,
        "aggregation": flags.aggregation,
        "depth_by": flags.depth_by,
        "rounds": flags.rounds,
        "rounds_order": flags.rounds_order,
        "repair": flags.repair,
    }


def _execution_fields(flags: Flags, device: str, dtype: str, optimizer: str) -> dict[str, Any]:
    """Return the fields about device, precision, storage, seed and custom code."""
    return {
        "device": device,
        "dtype": dtype,
        "optimizer": optimizer,
        "storage": flags.storage or os.environ.get("OPTUNA_STORAGE", ""),
        "seed": flags.seed,
        "keep_towers": flags.keep_towers,
        "trust_remote_code": flags.trust_remote_code,
    }


def _distillation_fields(flags: Flags) -> dict[str, Any]:
    """Return the fields about teacher correction, distillation and benchmarks."""
    tasks = named_objectives(flags.objectives, (), flags.benchmarks)[1]
    return {
        "teacher_correction": _tokens(flags.correct_teacher, "--correct-teacher", 0),
        "loss": flags.loss,
        "temperature": flags.temperature,
        "states": states_asked(flags.states),
        "targets": flags.targets,
        "schedule": flags.schedule,
        "rate": rate_of(flags.rate),
        "benchmarks": tasks,
        "task_samples": flags.task_samples,
        "least": least_of_config(flags.min, tasks),
    }


def _tokens(text: str | None, flag: str, default: int) -> int:
    return parse_count(text, flag) if text else default


def _as_directory(model: str) -> str:
    return str(directory_of_gguf(model, cache_directory() / "gguf")) if is_gguf(model) else model


def _default_teacher(text: BudgetText, measure: Measure) -> str:
    """Return the teacher that suits the budget; the embedded one by a path relative to the working folder."""
    teacher = teacher_for(text, measure)
    return os.path.relpath(EMBEDDED) if teacher == str(EMBEDDED) else teacher


def _in_rotated_basis(resolved: Resolved) -> Resolved | None:
    """Return the run in the rotated basis; None if that is impossible or hidden has a single size."""
    if len(resolved.space.values(Axis.HIDDEN)) == 1:
        return None
    try:
        stream = verified_axis_map(resolved.axis_map.config, _ROTATED).stream
    except InputError:
        return None
    axis_map = replace(resolved.axis_map, stream=stream)
    return replace(
        resolved, axis_map=axis_map, basis=_ROTATED, costs=replace(resolved.costs, axis_map=axis_map)
    )


def _stored_bytes(teacher: str, config: PretrainedConfig) -> int:
    """Return the bytes of a stored weight: from the weight files if they are local, else from the config."""
    directory = Path(teacher).expanduser()
    if directory.is_dir():
        with suppress(InputError):  # the stages that need the weights report it; a plan needs none
            return stored_dtype(weight_files(directory, teacher), teacher).itemsize
    name = str(config.dtype or torch.float32).removeprefix("torch.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype.itemsize


def budget_of(flags: Flags, text: BudgetText, axis_map: AxisMap) -> tuple[Budget, int]:
    """Return the budget as an amount, and the teacher's amount in the same measure.

    Raises:
        InputError: the teacher's config lacks what the measure needs.
    """
    value_bytes = getattr(torch, _budget_dtype(flags, axis_map.config)).itemsize
    empty = Budget(0, flags.tolerance, Measure(flags.budget_of), value_bytes)
    whole = budget_polynomial(axis_map, empty).of(axis_map.teacher)
    return replace(empty, amount=text.of(whole)), whole


def _budget_dtype(flags: Flags, config: PretrainedConfig) -> str:
    """Return the dtype in which bytes are counted: the user's, the teacher's, or else float32."""
    return flags.budget_dtype or str(config.dtype or torch.float32).removeprefix("torch.")


def _device(flags: Flags) -> str:
    """Return the device of the run; a plan for a card of a named size takes one that need not be here."""
    name = flags.device
    if flags.plan and flags.device_memory and (name or "cuda").startswith("cuda"):
        return name or "cuda"
    if name is None:
        return default_device()
    remedy = "Leave --device out, or name one of cpu, cuda, cuda:1, mps"
    rule = "The device has to be one that PyTorch has here"
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(rule, f"{name!r} is not: {short_message(error)}", remedy) from None
    return name
