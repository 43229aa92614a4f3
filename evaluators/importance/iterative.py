"""Importance in rounds: score, prune a part of what has to go, and score again what is left.

Minitron (arXiv 2407.14679, section 2.2, table 14) found one round as good as several, so a single shot
is the default. What comes of the rounds is an ordinary ranking of the teacher, whose students of the
target's sizes have just the units that survived them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.depth.scores import Judge
from evaluators.importance.merging import Merging
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, keeps, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.cutting.rounds import architectures_between
from space.cutting.student_map import student_map
from space.input_error import InputError


class Phase(StrEnum):
    """What a part of a round scores and prunes."""

    TOGETHER = "together"
    """Width and depth, from one scoring."""
    WIDTH = "width"
    """Everything inside the layers, and hidden."""
    DEPTH = "depth"


_AXES = {
    Phase.TOGETHER: frozenset(Axis),
    Phase.WIDTH: frozenset(Axis) - {Axis.LAYERS},
    Phase.DEPTH: frozenset({Axis.LAYERS}),
}
_IN_A_ROW = (Depth.BLOCK_INFLUENCE, Depth.BLOCK_PERPLEXITY)
_DEFAULT = Method()


def rank_in_rounds(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    target: Architecture,
    advance: Callable[[int], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    order: Sequence[Phase] = (Phase.TOGETHER,),
    accelerator: Accelerator | None = None,
    judge: Judge | None = None,
) -> Ranking:
    """Rank the teacher in ``method.rounds`` rounds of scoring and pruning.

    Each phase but the last scores, then prunes its axes by (teacher − target) / rounds units, or up to
    the next size that the class allows. With one round of one phase the scores are those of ``rank``. In a
    turned basis the directions of the first round stay; students are cut along them.

    Args:
        model: the teacher, in evaluation mode; stays as it is.
        axis_map: the teacher's.
        calibration: (N, T) token numbers; each block is one sample of the batch.
        fingerprint: of all that the ranking depends on, target and order among it.
        target: the sizes after the last round: the smallest that students may have.
        advance: told the number of blocks after each batch; N blocks a phase.
        method: how each round scores, and how many there are.
        order: the phases of a round; (WIDTH, DEPTH) scores layers after the widths have been cut.
        accelerator: as for ``rank``; every process prunes the same.
        judge: as for ``rank``; it is asked about the students of every phase.

    Raises:
        InputError: activations are not finite, the class computes with an axis in an unknown way or cannot be
            told to keep just the layers of a round, or layers in a row are to be scored in several rounds.
    """
    once = replace(method, rounds=1)
    _check(method, order)
    ranking = rank(model, axis_map, calibration, fingerprint, advance, once, accelerator, judge)
    architectures = architectures_between(axis_map, target, method.rounds)
    steps = [(phase, sizes) for sizes in architectures for phase in order]
    if len(steps) == 1:
        return ranking
    weights, once = saved_tensors(model, axis_map), replace(once, basis=BasisName.COORDINATE)
    reached = axis_map.teacher
    for (before, sizes), (phase, _) in pairwise(steps):
        reached = _pruned(reached, sizes, before)
        layers = keeps(axis_map, ranking, reached)
        canonical = sort_by_importance(weights, axis_map, ranking)
        student = extract(canonical, axis_map, ranking, reached, layers)
        drawn = student_map(axis_map, reached, layers)
        found = rank(student, drawn, calibration, fingerprint, advance, once, accelerator, judge)
        axes = _AXES[phase] - ({Axis.HIDDEN} if ranking.basis is not None else set())
        ranking = Merging(axis_map, ranking, reached, layers).with_scores(found, axes)
    return replace(ranking, method=f"{method.words}, {' then '.join(order)}, towards {target.label}")


def _check(method: Method, order: Sequence[Phase]) -> None:
    if method.rounds > 1 and method.depth in _IN_A_ROW and set(order) != {Phase.WIDTH}:
        raise InputError(
            "Layers in a row are scored once: what is left of a block is no block of the teacher's",
            f"{method.rounds} rounds with layers by {method.depth} were asked for",
            "Take one round, or layers by influence, perplexity or divergence",
        )


def _pruned(reached: Architecture, sizes: Architecture, phase: Phase) -> Architecture:
    """The sizes after a phase of a round that leads to ``sizes``."""
    changed = {axis.value: sizes[axis] for axis in _AXES[phase]}
    return replace(reached, **changed)
