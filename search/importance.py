"""How a run measures importance: from what the user chose to a ranking, and to repairs after cutting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evaluators.benchmarks import judge_of
from evaluators.corpus.corpus import Corpus
from evaluators.fingerprint import fingerprint
from evaluators.importance.depth.scores import Judge
from evaluators.importance.iterative import rank_in_rounds
from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank, ranking_fingerprint
from evaluators.teacher import Teacher
from search.console import Console
from search.method import method_of
from search.resolution import Resolved
from space.architecture import Architecture, Axis
from space.axis_map import AxisMap
from space.moments import Moments
from space.ranking import Ranking
from space.repair import Repair
from space.residual import producing
from space.search_space import SearchSpace

LEAST_SQUARES, NORM_SCALE, HEAD_RESIDUAL = "least-squares", "norm-scale", "head-residual"


def smallest(space: SearchSpace, axis_map: AxisMap) -> Architecture:
    """The least of every axis that a student may have: where rounds of pruning lead to."""
    sizes = {axis: int(space.column(axis).min()) for axis in axis_map.free}
    if Axis.HEADS in sizes:
        groups = sizes.get(Axis.KV_HEADS, axis_map.teacher.kv_heads)
        sizes[Axis.HEADS] = groups * -(-sizes[Axis.HEADS] // groups)
    return axis_map.complete(sizes)


def ranked(
    variant: Resolved, teacher: Teacher, corpus: Corpus, places: list[Path], console: Console
) -> Ranking:
    """The ranking of a teacher: the one that was made before, or a new one, which is kept.

    Args:
        variant: the run in one basis.
        teacher: its.
        corpus: with the calibration set.
        places: where it may lie; a new one is kept at the last.
        console: for progress.
    """
    method = replace(method_of(variant.config), basis=variant.basis)
    target = smallest(variant.space, variant.axis_map)
    key = ranking_fingerprint(teacher.fingerprint, corpus.calibration, method)
    if method.rounds > 1:
        key = fingerprint(key, target.label)
    tokens = corpus.calibration.numel()
    for place in places:
        if (ranking := Ranking.load(place, key)) is not None:
            console.say(f"reusing the ranking in {place}: same teacher, text and method")
            console.forecast.skip("forward", tokens)
            return ranking
    judge = _judge(method, teacher)
    with console.work("ranking every axis", "forward", method.rounds * tokens) as advance:
        common = (teacher.model, variant.axis_map, corpus.calibration, key)
        if method.rounds > 1:
            ranking = rank_in_rounds(
                *common, target, lambda blocks: advance(blocks * corpus.block), method, judge=judge
            )
        else:
            ranking = rank(*common, lambda blocks: advance(blocks * corpus.block), method, judge=judge)
    ranking.save(places[-1])
    return ranking


def _judge(method: Method, teacher: Teacher) -> Judge | None:
    return judge_of(method.benchmark, teacher.tokenizer) if method.benchmark else None


def repair_of(
    variant: Resolved, teacher: Teacher, corpus: Corpus, ranking: Ranking, path: Path, console: Console
) -> Repair:
    """What is repaired after cutting.

    Args:
        variant: the run in one basis.
        teacher: its.
        corpus: with the calibration set.
        ranking: that students are cut by.
        path: of the moments, if any are needed.
        console: for progress.
    """
    wanted, axis_map = variant.config.repair, variant.axis_map
    heads = producing(axis_map) if HEAD_RESIDUAL in wanted else {}
    if not {LEAST_SQUARES, NORM_SCALE} & set(wanted):
        return Repair(heads)
    moments = _moments(teacher, axis_map, corpus, path, console).sorted_by(axis_map, ranking)
    return Repair(heads, LEAST_SQUARES in wanted, NORM_SCALE in wanted, moments)


def _moments(teacher: Teacher, axis_map: AxisMap, corpus: Corpus, path: Path, console: Console) -> Moments:
    key = fingerprint(teacher.fingerprint, corpus.calibration)
    if (moments := Moments.load(path, key)) is not None:
        return moments
    tokens = corpus.calibration.numel()
    with console.work("gathering moments for repairs", "forward", tokens) as advance:
        moments = gather_moments(
            teacher.model, axis_map, corpus.calibration, key, lambda blocks: advance(blocks * corpus.block)
        )
    moments.save(path)
    return moments
