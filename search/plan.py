"""What a run would do, without doing it: the space, tokens, arithmetic, disk."""

from __future__ import annotations

import math

from evaluators.distillation.targets.cached import cache_bytes
from evaluators.flops import training_flops
from search.resolution import Resolved
from search.run_directory import RunDirectory
from space.architecture import Axis
from space.baselines import baselines
from space.budget import Measure, spoken
from space.counting import matrix_polynomial


def plan(resolved: Resolved, directory: RunDirectory) -> str:
    """For people: a name and what it stands for on each line, however long."""
    rows = [*_space_rows(resolved), *_work_rows(resolved), ("run directory", str(directory.path))]
    width = max(len(name) for name, _ in rows)
    below = "\n" + " " * (width + 3)
    lines = (name.ljust(width + 3) + value.replace("\n", below) for name, value in rows)
    return "\n".join(lines)


def _space_rows(resolved: Resolved) -> list[tuple[str, str]]:
    config, space, teacher = resolved.config, resolved.space, resolved.axis_map.teacher
    sizes = [f"{axis} {_span(space.values(axis))} of {teacher[axis]}" for axis in space.free_axes]
    if space.solved:
        solved = space.column(space.solved)
        of = f"of {teacher[space.solved]}, solved from the budget"
        sizes.append(f"{space.solved} {solved.min()} to {solved.max()} {of}")
    hand_made = [
        (origin, f"{a.label}, {space.parameters_of(a):,} parameters")
        for origin, a in baselines(space, teacher).items()
    ]
    return [
        ("teacher", f"{config.teacher}, {resolved.teacher_parameters:,} parameters"),
        ("budget", str(space.budget)),
        (
            "architectures",
            f"{len(space):,}, from {space.parameters.min():,} to {space.parameters.max():,} parameters",
        ),
        ("sizes", "\n".join(sizes)),
        *hand_made,
    ]


def _work_rows(resolved: Resolved) -> list[tuple[str, str]]:
    config, matrices = resolved.config, matrix_polynomial(resolved.axis_map)
    whole = matrices.of(resolved.axis_map.teacher)
    space = resolved.space
    student = int(matrices.at({axis: space.column(axis) for axis in Axis}).max())
    usual = int(space.parameters.mean())
    rungs = list(zip(config.rung_tokens, config.rung_candidates, strict=True))
    short = sum(tokens * candidates for tokens, candidates in rungs)
    retrained = resolved.retrainings
    cached = config.distillation_blocks * config.block if config.cache_targets else max(config.rung_tokens)
    rows = [("rung 0", f"{config.trials} candidates, loss straight after pruning")]
    for number, (tokens, candidates) in enumerate(rungs, start=1):
        rows.append((f"rung {number}", f"{candidates} candidates, {tokens:,} tokens each"))
    live = 0 if config.cache_targets else retrained * config.retrain_tokens
    flops = training_flops(student, short + retrained * config.retrain_tokens) + 2 * whole * (cached + live)
    models = (retrained - config.retrain_baselines) * usual * 4  # random weights are not kept
    disk = cache_bytes(cached, resolved.axis_map.teacher.hidden) + models + 16 * usual
    return [
        *rows,
        ("retraining", f"{retrained} models, {config.retrain_tokens:,} tokens each"),
        (
            "tokens",
            f"{short + retrained * config.retrain_tokens:,} trained on, {cached:,} of teacher targets cached",
        ),
        ("arithmetic", f"{flops:.2e} FLOPs (10^{math.log10(flops):.1f})"),
        ("disk", _bytes(disk)),
    ]


def _bytes(number: float) -> str:
    text = spoken(number, Measure.WEIGHTS)
    return f"{text[:-2]} {text[-2:]}"


def _span(values: list[int]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 6 else f"{values[0]}, {values[1]} … {values[-1]}"
