"""Plan which of the teacher's targets a run keeps on disk, from its sizes and the free space."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.distillation.states import StatePlace, states_named
from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.choice import TargetsSetting, choose_form
from search.settings.config import RunConfig
from search.settings.methods import loss_of
from space.axes.architecture import Axis
from space.counting.counting import matrix_polynomial
from space.input_error import InputError

if TYPE_CHECKING:
    from search.settings.resolved import Resolved


@dataclass(frozen=True)
class TargetsPlan:
    """Which of the teacher's targets are cached on disk."""

    form: FormName
    blocks: int
    """Number of cached blocks, from the first; 0: none. For further blocks the teacher runs live."""


def asks_teacher(config: RunConfig) -> bool:
    """Return whether training uses the teacher's logits or states."""
    return loss_of(config).needs_teacher or bool(config.states)


def setting_of(resolved: Resolved, tokens: int, width: int | None = None) -> TargetsSetting:
    """Return the sizes that the choice of the targets' form depends on.

    Args:
        resolved: the run; its student with the most matrix weights counts.
        tokens: tokens of the distillation set.
        width: D, the input width of the teaching model's head; by default its hidden size.
    """
    space, matrices, teaching = resolved.space, matrix_polynomial(resolved.axis_map), resolved.teaching
    hidden = teaching.teacher.hidden
    taught = matrices if teaching is resolved.axis_map else matrix_polynomial(teaching)
    return TargetsSetting(
        tokens=tokens,
        block=resolved.config.block,
        vocabulary=teaching.config.get_text_config(decoder=True).vocab_size,
        width=width or hidden,
        student=int(matrices.at({axis: space.column(axis) for axis in Axis}).max()),
        teacher=int(taught.of(teaching.teacher)),
        every_logit=loss_of(resolved.config).needs_every_logit,
        states=hidden * len(places_of(resolved)),
    )


def places_of(resolved: Resolved) -> Sequence[StatePlace]:
    """Return where the teacher's intermediate states are taken, the same for every student."""
    layers = resolved.teaching.teacher.layers
    states = states_named(resolved.config.states, layers, layers)
    return () if states is None else states.of_teacher


def plan_targets(config: RunConfig, setting: TargetsSetting, free: int) -> TargetsPlan:
    """Plan to cache the targets of all text if they fit; else those for the rungs, with live retraining.

    Args:
        config: configuration of the run.
        setting: sizes, with the tokens of all text.
        free: free bytes on the disk.

    Raises:
        InputError: the requested form does not suffice for the loss, or does not fit even for the rungs.
    """
    if not asks_teacher(config):
        return TargetsPlan(FormName.LIVE, 0)
    blocks = -(-setting.tokens // setting.block)
    short = min(blocks, -(-max(config.rung_tokens) // setting.block))
    rungs = replace(setting, tokens=min(setting.tokens, short * setting.block))
    for_rungs = choose_form(config.targets, rungs, free)
    try:
        for_all = choose_form(config.targets, setting, free)
    except InputError:
        for_all = FormName.LIVE
    if for_all is not FormName.LIVE:
        return TargetsPlan(for_all, blocks)
    return TargetsPlan(for_rungs, 0 if for_rungs is FormName.LIVE else short)


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of ``path``, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
