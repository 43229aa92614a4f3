"""``--plan``: what a run would do, without doing it: search space, tokens, arithmetic, disk and time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.choice import form_in_words, size_text
from evaluators.metrics.pace import Pace, training_flops
from evaluators.tasks.task import tasks_of
from search.planning.messages import hours_line
from search.planning.text import text_rows
from search.rungs.evaluation import BY_HAND
from search.settings.config import NESTED, RunConfig
from search.settings.costs import pace_of
from search.settings.ledger import Ledger, run_ledger
from search.settings.memory_table import memory_lines, memory_rows
from search.settings.moments_plan import needs_moments
from search.settings.multiples import in_words
from search.settings.objectives import LATENCY, bounds_in_words
from search.settings.resolved import Resolved
from search.settings.run_time import RunTime, foretell
from search.settings.scale import device_is_here
from search.settings.targets_plan import asks_teacher, free_bytes, plan_targets, setting_of
from search.settings.teachers import teachers_in_words
from search.stages.preparation import variants_of
from search.stages.sorted_weights import sorted_bytes_of
from search.storage.run_directory import RunDirectory
from search.terminal.console import clock
from space.axes.architecture import Axis
from space.counting.counting import matrix_polynomial
from space.enumeration.hand_made import baselines

_NO_TIME = "not known: the card that this is planned for is not here to be timed"


def pace_for(resolved: Resolved) -> Pace:
    """Return the pace that the amounts of a run follow from, or else measure it."""
    config = resolved.config
    return resolved.pace or pace_of(
        resolved.axis_map,
        resolved.space,
        config.device,
        config.dtype,
        config.batch_blocks,
        config.block,
        OptimizerName(config.optimizer),
    )


@dataclass(frozen=True)
class Plan:
    """What a run would do, and how long it would take here."""

    rows: list[tuple[str, str]]
    """Pairs of name and text."""
    time: RunTime | None
    """None if the plan is for a card that is not here."""
    memory: Ledger

    def __str__(self) -> str:
        """For people: aligned names and texts, one row per line, not wrapped."""
        width = max(len(name) for name, _ in self.rows)
        below = "\n" + " " * (width + 3)
        return "\n".join(name.ljust(width + 3) + value.replace("\n", below) for name, value in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For programs; seconds are for one worker on this device."""
        stages, time = ("ranking", "search", "reserve", "retraining", "total"), self.time
        return {
            "plan": dict(self.rows),
            "seconds": time and {stage: round(getattr(time, stage), 1) for stage in stages},
            "memory": memory_rows(self.memory),
        }


def plan(resolved: Resolved, directory: RunDirectory, verbose: bool = False) -> Plan:
    """Count what a run takes, look at its texts, and time a student for some ten seconds.

    Args:
        resolved: the run.
        directory: of the run, which need not exist.
        verbose: whether to show a conversation as the teacher reads it.

    Raises:
        InputError: a text cannot be used, or the requested form of targets is impossible.
    """
    texts = text_rows(resolved.config, verbose)
    targets = TargetsRow(resolved, directory)
    work = _work_rows(resolved, targets)
    time, words = None, _NO_TIME
    if device_is_here(resolved.config.device):
        read = targets.read(_short_tokens(resolved.config), resolved.retraining_tokens)
        pace = pace_for(resolved)
        time = foretell(resolved.config, resolved.work, pace, read)
        words = _time_in_words(time, pace, resolved)
    memory = run_ledger(resolved, directory.path)
    rows = [
        *_space_rows(resolved),
        *texts,
        *work,
        ("memory", "\n".join(memory_lines(memory))),
        ("time", words),
        ("run directory", str(directory.path)),
    ]
    return Plan(rows, time, memory)


def _time_in_words(time: RunTime, pace: Pace, resolved: Resolved) -> str:
    config = resolved.config
    stages = {"ranking": time.ranking, "search": time.search, "retraining": time.retraining}
    if config.reserve_tokens:
        stages["held back"] = time.reserve
    parts = ", ".join(f"{clock(seconds)} {stage}" for stage, seconds in stages.items())
    unknown = [task.name for task in tasks_of(config.benchmarks) if not task.of_examples]
    others = f"; {', '.join(unknown)} on top" if unknown else ""
    how = "timed just now" if pace.timed else "by its arithmetic and the rate of a matrix product"
    learnt = f"{pace.learnt:,.{0 if pace.learnt >= 10 else 2}f} tokens a second"
    limited = f"\n{hours_line(resolved)}" if config.hours else ""
    return (
        f"about {clock(time.total)} of one worker: {parts}{others}\n"
        f"a student learns {learnt} on {config.device}, {how}{limited}"
    )


def _short_tokens(config: RunConfig) -> int:
    """Tokens of all short distillations."""
    return config.spent_tokens


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
    hand_made += [(BY_HAND, f"{a.label}, {space.parameters_of(a):,} parameters") for a in resolved.by_hand()]
    bounds = (
        [("bounds", f"{bounds_in_words(config.upper_bounds)}{_bounds_effect(resolved)}")]
        if config.bounds
        else []
    )
    return [
        ("teacher", f"{config.teacher}, {resolved.teacher_parameters:,} parameters"),
        *([("taught by", config.taught_by)] if config.taught_by else []),
        *(
            [("passed over", teachers_in_words(resolved.passed_over, space.budget))]
            if resolved.passed_over
            else []
        ),
        ("budget", str(space.budget)),
        *bounds,
        (
            "architectures",
            f"{len(space):,}, from {space.parameters.min():,} to {space.parameters.max():,} parameters",
        ),
        ("sizes", "\n".join(sizes)),
        *([("multiples", in_words(resolved.axis_map))] if resolved.axis_map.multiples else []),
        *hand_made,
    ]


def _bounds_effect(resolved: Resolved) -> str:
    """Say how much of the space the bounds leave, as far as this is known before any measurement."""
    bounds, costs = resolved.config.upper_bounds, resolved.costs
    known = costs.table(resolved.whole.table[:1]).keys() & bounds.keys()
    left = f"; {len(resolved.space):,} of {len(resolved.whole):,} architectures lie within" if known else ""
    if known and len(known) < len(bounds):
        left += f" {' and '.join(name for name in bounds if name in known)}"
    later = {True: "is measured of each candidate", False: "is known after the ranking"}
    return left + "".join(f"; {name} {later[name == LATENCY]}" for name in bounds if name not in known)


def _work_rows(resolved: Resolved, targets: TargetsRow) -> list[tuple[str, str]]:
    config, matrices = resolved.config, matrix_polynomial(resolved.axis_map)
    whole, teaching = matrices.of(resolved.axis_map.teacher), resolved.teaching
    space = resolved.space
    student = int(matrices.at({axis: space.column(axis) for axis in Axis}).max())
    mean_student = int(space.parameters.mean())
    rungs = list(zip(config.rung_tokens, config.rung_candidates, strict=True))
    short, finding = _short_tokens(config), resolved.finding_tokens
    (full, brief), retraining = resolved.retrainings, resolved.retraining_tokens
    corrected = config.teacher_correction
    rows = [("correction", f"{corrected:,} tokens that the teacher is trained on")] if corrected else []
    rows += [("learning rate", resolved.rate_in_words)]
    rows += [("rung 0", f"{config.trials} candidates, loss straight after pruning")]
    for number, (tokens, candidates) in enumerate(rungs, start=1):
        how = f"after {tokens:,} of all" if config.search == NESTED else f"{tokens:,} tokens each"
        rows.append((f"rung {number}", f"{candidates} candidates, {how}"))
    if config.reserve_tokens:
        held = f"{config.reserve_tokens:,} tokens, for more candidates where a rung misleads"
        rows.append(("held back", held))
    read = targets.read(short, retraining)
    flops = training_flops(student, short + finding + retraining)
    taught = matrices if teaching is resolved.axis_map else matrix_polynomial(teaching)
    flops += 2 * taught.of(teaching.teacher) * read
    flops += training_flops(whole, corrected)
    models = (full + brief - config.retrain_baselines) * mean_student * 4  # random weights are not kept
    others = f"; {brief} for comparison, {config.short_retrain_tokens:,}" if brief else ""
    # A corrected teacher is kept as weights, and while it trains as a checkpoint with AdamW's moments.
    teacher = 16 * resolved.teacher_parameters if corrected else 0
    sorted_weights = sorted_bytes_of(list(variants_of(resolved).values()))
    moments = resolved.moments.sums.file if needs_moments(config) else 0
    scored = [("benchmarks", " ".join(config.benchmarks))] if config.benchmarks else []
    return [
        *rows,
        ("retraining", f"{full} models, {config.retrain_tokens:,} tokens each{_long_words(config)}{others}"),
        ("tokens", f"{short + finding + retraining:,} trained on"),
        ("targets", targets.words),
        ("repairs", _repairs_in_words(resolved)),
        *scored,
        ("arithmetic", f"{flops:.2e} FLOPs (10^{math.log10(flops):.1f})"),
        ("disk", size_text(targets.size + models + 16 * mean_student + teacher + sorted_weights + moments)),
    ]


def _repairs_in_words(resolved: Resolved) -> str:
    config = resolved.config
    if not config.repair:
        return "none"
    named = " and ".join(config.repair)
    if not needs_moments(config):
        return named
    plan = resolved.moments
    words = plan.words(by_layers=resolved.placement.layer_by_layer)
    return f"{named}\n{words}, {size_text(plan.sums.file)} on disk"


def _long_words(config: RunConfig) -> str:
    if not config.long_block:
        return ""
    return f", the last {config.long_share:.0%} in blocks of {config.long_block:,}"


class TargetsRow:
    """The teacher's targets in the plan: their form and size on disk, for all text that a run may read.

    Raises:
        InputError: the requested form of targets is impossible.
    """

    def __init__(self, resolved: Resolved, directory: RunDirectory) -> None:
        config = resolved.config
        self.asked = asks_teacher(config)
        setting = setting_of(resolved, config.distillation_blocks * config.block)
        found = plan_targets(config, setting, free_bytes(directory.path))
        self.tokens = found.blocks * config.block
        self.whole = found.blocks == config.distillation_blocks
        self.size = replace(setting, tokens=self.tokens).bytes_of(found.form)
        self.words = "none: the loss asks no teacher" if not self.asked else "the teacher runs live"
        if found.blocks:
            kept = f"{self.tokens:,} tokens as {form_in_words(found.form)}, {size_text(self.size)}"
            self.words = kept if self.whole else f"{kept}; in retraining the teacher runs live"

    def read(self, short: int, retraining: int) -> int:
        """Count the tokens that the teacher reads: once for cached targets, each time for live ones."""
        if not self.asked:
            return 0
        return self.tokens + (0 if self.tokens else short) + (0 if self.whole else retraining)


def _span(values: list[int]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 6 else f"{values[0]}, {values[1]} … {values[-1]}"
