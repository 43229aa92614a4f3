"""Importance in a run: from its settings to the ranking, and to the repairs of students after cutting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evaluators.corpus.blocks import fingerprint
from evaluators.corpus.corpus import Corpus
from evaluators.importance.iterative import RoundPhase, rank_in_rounds
from evaluators.importance.layer_scores import TaskScorer
from evaluators.importance.method import Method
from evaluators.importance.moments import MomentsListener, gather_moments
from evaluators.importance.rank import needs_forward_pass, rank, ranking_fingerprint
from evaluators.metrics.benchmarks import task_scorer
from evaluators.teacher import Teacher
from search.settings.config import RunConfig
from search.settings.methods import method_of
from search.settings.resolution import Resolved
from search.terminal.console import Console
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.moments import Moments
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair, producing_tensors
from space.enumeration.search_space import SearchSpace

LEAST_SQUARES, NORM_SCALE, HEAD_RESIDUAL = "least-squares", "norm-scale", "head-residual"


def smallest_architecture(space: SearchSpace, axis_map: AxisMap) -> Architecture:
    """Return the smallest size of every axis in the space: the target of iterative pruning."""
    sizes = {axis: int(space.column(axis).min()) for axis in axis_map.free}
    if Axis.HEADS in sizes:
        groups = sizes.get(Axis.KV_HEADS, axis_map.teacher.kv_heads)
        sizes[Axis.HEADS] = groups * -(-sizes[Axis.HEADS] // groups)
    return axis_map.complete(sizes)


def load_or_rank(
    variant: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    places: list[Path],
    moments: Path,
    console: Console,
) -> Ranking:
    """Load a teacher's ranking, or compute and save it.

    Args:
        variant: the run in one basis of hidden.
        teacher: teacher of the run.
        corpus: corpus with the calibration set.
        places: files to look in; a new ranking is saved to the last.
        moments: file for the moments that repairs need, if the same forward pass can gather them.
        console: for progress.
    """
    config, axis_map = variant.config, variant.axis_map
    method = replace(method_of(config), basis=variant.basis)
    order = tuple(RoundPhase(name) for name in config.rounds_order.split("-"))
    in_rounds = (method.rounds, order) != (1, (RoundPhase.TOGETHER,))
    target = smallest_architecture(variant.space, axis_map)
    key = ranking_fingerprint(teacher.fingerprint, corpus.calibration, method)
    if in_rounds:
        key = fingerprint(key, target.label, config.rounds_order)
    tokens = corpus.calibration.numel()
    for place in places:
        if (ranking := Ranking.load(place, key)) is not None:
            console.say(f"reusing the ranking in {place}: same teacher, text and method")
            console.forecast.skip("forward", tokens)
            return ranking
    judge = _judge(method, teacher)
    passes = method.rounds * len(order)
    separate = in_rounds or not needs_forward_pass(method)
    listener = None if separate or not _needs_moments(config) else MomentsListener(teacher.model, axis_map)
    with console.work("ranking every axis", "forward", passes * tokens) as advance:

        def report(blocks: int) -> None:
            advance(blocks * corpus.block)

        common = (teacher.model, axis_map, corpus.calibration, key)
        if in_rounds:
            ranking = rank_in_rounds(*common, target, report, method, order, judge=judge)
        else:
            beside = listener.on() if listener else None
            ranking = rank(*common, report, method, judge=judge, pass_context=beside)
    if listener is not None:
        listener.moments(_moments_key(teacher, corpus)).save(moments)
    ranking.save(places[-1])
    return ranking


def _judge(method: Method, teacher: Teacher) -> TaskScorer | None:
    return task_scorer(method.benchmark, teacher.tokenizer) if method.benchmark else None


def repair_of(
    variant: Resolved, teacher: Teacher, corpus: Corpus, ranking: Ranking, path: Path, console: Console
) -> Repair:
    """Return the repairs that the run applies to a student after cutting.

    Args:
        variant: the run in one basis of hidden.
        teacher: teacher of the run.
        corpus: corpus with the calibration set.
        ranking: ranking that students are cut by.
        path: file of the moments, if any are needed.
        console: for progress.
    """
    wanted, axis_map = variant.config.repair, variant.axis_map
    heads = producing_tensors(axis_map) if HEAD_RESIDUAL in wanted else {}
    if not _needs_moments(variant.config):
        return Repair(heads)
    moments = _moments(teacher, axis_map, corpus, path, console).sorted_by(axis_map, ranking)
    return Repair(heads, LEAST_SQUARES in wanted, NORM_SCALE in wanted, moments)


def _needs_moments(config: RunConfig) -> bool:
    return bool({LEAST_SQUARES, NORM_SCALE} & set(config.repair))


def _moments_key(teacher: Teacher, corpus: Corpus) -> str:
    return fingerprint(teacher.fingerprint, corpus.calibration)


def _moments(teacher: Teacher, axis_map: AxisMap, corpus: Corpus, path: Path, console: Console) -> Moments:
    key = _moments_key(teacher, corpus)
    if (moments := Moments.load(path, key)) is not None:
        return moments
    tokens = corpus.calibration.numel()
    with console.work("gathering moments for repairs", "forward", tokens) as advance:
        moments = gather_moments(
            teacher.model, axis_map, corpus.calibration, key, lambda blocks: advance(blocks * corpus.block)
        )
    moments.save(path)
    return moments
