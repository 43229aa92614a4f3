"""Which of the teacher's targets a run keeps on the disk: decided from sizes alone, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.distillation.places import Place
from evaluators.distillation.states import chosen
from evaluators.distillation.targets.choice import Setting, choose
from evaluators.distillation.targets.form import FormName
from search.settings.config import RunConfig
from search.settings.distilling import loss_of
from search.settings.resolution import Resolved
from space.axes.architecture import Axis
from space.counting.counting import matrix_polynomial
from space.input_error import InputError


@dataclass(frozen=True)
class TargetsPlan:
    """What of the teacher's targets lies on the disk."""

    form: FormName
    blocks: int
    """From the first on; none if the teacher runs live. Whoever reads more than these asks it live."""


def asks_teacher(config: RunConfig) -> bool:
    """Whether anything that is learnt comes from the teacher."""
    return loss_of(config).needs_teacher or bool(config.states)


def setting_of(resolved: Resolved, tokens: int, width: int | None = None) -> Setting:
    """Sizes of a run, as the choice of the form asks for them.

    Args:
        resolved: the run; of its students the one with most matrix weights counts.
        tokens: of the distillation set.
        width: D, how many numbers the head of whoever teaches reads; its hidden unless told.
    """
    space, matrices, teaching = resolved.space, matrix_polynomial(resolved.axis_map), resolved.teaching
    hidden = teaching.teacher.hidden
    return Setting(
        tokens=tokens,
        block=resolved.config.block,
        vocabulary=teaching.config.get_text_config(decoder=True).vocab_size,
        width=width or hidden,
        student=int(matrices.at({axis: space.column(axis) for axis in Axis}).max()),
        teacher=int(matrix_polynomial(teaching).of(teaching.teacher)),
        every_logit=loss_of(resolved.config).needs_every_logit,
        states=hidden * len(places_of(resolved)),
    )


def places_of(resolved: Resolved) -> Sequence[Place]:
    """Where the teacher's intermediate states are taken: the same for every student."""
    layers = resolved.teaching.teacher.layers
    states = chosen(resolved.config.states, layers, layers)
    return () if states is None else states.of_teacher


def plan_targets(config: RunConfig, setting: Setting, free: int) -> TargetsPlan:
    """The targets of all text if they fit; else those that the rungs read, and retraining asks live.

    Args:
        config: of the run.
        setting: sizes, with the tokens of all text.
        free: bytes on the disk.

    Raises:
        InputError: a form was asked for that is not enough for the loss, or does not fit even for the rungs.
    """
    if not asks_teacher(config):
        return TargetsPlan(FormName.LIVE, 0)
    blocks = -(-setting.tokens // setting.block)
    short = min(blocks, -(-max(config.rung_tokens) // setting.block))
    rungs = replace(setting, tokens=min(setting.tokens, short * setting.block))
    for_rungs = choose(config.targets, rungs, free)
    try:
        for_all = choose(config.targets, setting, free)
    except InputError:
        for_all = FormName.LIVE
    if for_all is not FormName.LIVE:
        return TargetsPlan(for_all, blocks)
    return TargetsPlan(for_rungs, 0 if for_rungs is FormName.LIVE else short)


def free_bytes(path: Path) -> int:
    """On the disk where ``path`` lies or will lie."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
