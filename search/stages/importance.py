"""Importance in a run: from its settings to the rankings, and to the repairs of students after cutting.

The teacher computes the same function in every basis of hidden. So its layers are scored once, and one
forward pass over the calibration set gives the rankings in all bases and the moments that repairs need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.blocks import fingerprint
from evaluators.corpus.corpus import Corpus
from evaluators.importance.from_disk import rank_in_bases_from_disk, score_layers_from_disk
from evaluators.importance.iterative import rank_in_rounds
from evaluators.importance.layer_cost import scored_apart
from evaluators.importance.layer_scores import Judge, LayerScores, layers_fingerprint
from evaluators.importance.moment_passes import MomentsRequest, gather_from_disk, gather_in_groups
from evaluators.importance.rank import needs_forward_pass, rank_in_bases, ranking_fingerprint, score_layers
from evaluators.tasks.depth import MarginCosts
from evaluators.tasks.examples import subset
from evaluators.tasks.task import ExampleScorer, harness_judge
from evaluators.teacher import Teacher
from evaluators.teacher.layer_by_layer import TeacherFiles
from search.settings.config import RunConfig
from search.settings.methods import depth_task, in_rounds, method_of, phases_of
from search.settings.moments_plan import (
    HEAD_RESIDUAL,
    LEAST_SQUARES,
    NORM_SCALE,
    needs_moments,
)
from search.settings.resolved import Resolved
from search.settings.run_time import layer_tokens, width_tokens
from search.stages.layer_by_layer import teacher_files
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.moments import Moments, moments_file
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair, producing_tensors
from space.enumeration.search_space import SearchSpace


def smallest_architecture(space: SearchSpace, axis_map: AxisMap) -> Architecture:
    """Return the smallest size of every axis in the space: the target of iterative pruning."""
    sizes = {axis: int(space.column(axis).min()) for axis in axis_map.free}
    if Axis.HEADS in sizes:
        groups = sizes.get(Axis.KV_HEADS, axis_map.teacher.kv_heads)
        sizes[Axis.HEADS] = groups * -(-sizes[Axis.HEADS] // groups)
    return axis_map.complete(sizes)


class Importance:
    """Ranks the teacher of a run, and keeps what it finds in the run directory.

    Its methods raise an InputError if the method of the run cannot score this teacher, or if activations or
    scores are not finite.
    """

    def __init__(
        self, resolved: Resolved, teacher: Teacher, corpus: Corpus, directory: RunDirectory, console: Console
    ) -> None:
        self.resolved, self.teacher, self.corpus = resolved, teacher, corpus
        self.directory, self.console = directory, console
        self.method = method_of(resolved.config)
        #: The map with the stream, if the run tries a rotated basis: what it hears serves all bases.
        self.axis_map = (resolved.turned or resolved).axis_map
        #: Set if the teacher is read layer by layer.
        self._files: TeacherFiles | None = None
        if resolved.placement.layer_by_layer:
            self._files = teacher_files(teacher, self.axis_map, resolved.config.trust_remote_code)
        self._found: dict[BasisName, Ranking] = {}

    def rank(self, variants: Sequence[Resolved]) -> dict[BasisName, Ranking]:
        """Return the teacher's ranking in each basis, and save what was not there yet.

        Args:
            variants: the run in the wanted bases.
        """
        new = [variant for variant in variants if variant.basis not in self._found]
        for variant in new:
            if (saved := self._saved(variant)) is not None:
                self._found[variant.basis] = saved
        missing = [variant for variant in new if variant.basis not in self._found]
        if missing:
            with self.teacher.on_device() if self._files is None else nullcontext():
                self._found |= self._made(missing)
        elif new:
            self.console.forecast.skip("forward", self.resolved.ranking_tokens)
        for variant in missing:
            self._found[variant.basis].save(self._places(variant)[-1])
            self._say_what_is_kept(variant.basis)
        return {variant.basis: self._found[variant.basis] for variant in variants}

    def _say_what_is_kept(self, name: BasisName) -> None:
        basis = self._found[name].basis
        if basis is not None and basis.norms:
            self.console.say(
                f"the {name} basis keeps {basis.kept} of {len(basis.energy)} coordinates, as norms cannot be "
                f"folded; they change the whole teacher's loss by {basis.loss_added:+.4f}"
            )

    def repair_of(self, variant: Resolved, ranking: Ranking) -> Repair:
        """Return the repairs that the run applies to a student after cutting.

        Args:
            variant: the run in one basis of hidden.
            ranking: ranking that students are cut by.
        """
        wanted, axis_map = variant.config.repair, variant.axis_map
        heads = producing_tensors(axis_map) if HEAD_RESIDUAL in wanted else {}
        if not needs_moments(variant.config):
            return Repair(heads)
        moments = self._moments().sorted_by(axis_map, ranking)
        return Repair(heads, LEAST_SQUARES in wanted, NORM_SCALE in wanted, moments)

    def _places(self, variant: Resolved) -> list[Path]:
        """Return the files of a ranking: a new one is saved to the last."""
        if variant.config.basis == variant.basis:
            return [self.directory.ranking]
        return [self.directory.ranking, self.directory.ranking_of(variant.basis.value)]

    def _saved(self, variant: Resolved) -> Ranking | None:
        for place in self._places(variant):
            if (ranking := Ranking.load(place, self._key(variant))) is not None:
                self.console.say(f"reusing the ranking in {place}: same teacher, text and method")
                return ranking
        return None

    def _key(self, variant: Resolved) -> str:
        method = replace(self.method, basis=variant.basis)
        key = ranking_fingerprint(self.teacher.fingerprint, self.corpus.calibration, method)
        if in_rounds(variant.config):
            target = smallest_architecture(variant.space, variant.axis_map)
            key = fingerprint(key, target.label, variant.config.rounds_order)
        return key

    def _made(self, variants: Sequence[Resolved]) -> dict[BasisName, Ranking]:
        layers = self._layers() if scored_apart(self.method) else None
        if self._files is not None:
            return self._ranked_from_disk(self._files, variants, layers)
        if in_rounds(self.resolved.config):
            return {variant.basis: self._ranked_in_rounds(variant, layers) for variant in variants}
        return self._ranked(variants, layers)

    def _layers(self) -> LayerScores:
        """Load or make the scores of the layers, which are those of every basis."""
        key = layers_fingerprint(self.teacher.fingerprint, self.corpus.calibration, self.method)
        tokens = layer_tokens(self.resolved.config, self.resolved.work.layer_passes)
        if (layers := LayerScores.load(self.directory.layers, key)) is not None:
            self.console.forecast.skip("forward", tokens)
            return layers
        judge = _judge(self.resolved.config, self.teacher)
        with self.console.work("ranking the layers", "forward", tokens) as advance:
            told = self._blocks(advance)
            if self._files is None:
                layers = score_layers(*self._asked, self.method, told, judge=judge)
            else:
                layers = score_layers_from_disk(self._files, self.corpus.calibration, self.method, told)
        layers.save(self.directory.layers, key)
        return layers

    def _ranked(self, variants: Sequence[Resolved], layers: LayerScores | None) -> dict[BasisName, Ranking]:
        """Rank in all these bases, and gather the moments, in one pass."""
        keys = {variant.basis: self._key(variant) for variant in variants}
        rotated = any(basis is not BasisName.COORDINATE for basis in keys)
        wanted = needs_moments(self.resolved.config) and self.resolved.moments.beside
        with self._moments_beside(wanted and needs_forward_pass(self.method, rotated=rotated)) as request:
            listener = request.listener(*self._asked, request.every) if request else None
            tokens = width_tokens(self.resolved.config, self.resolved.work.layer_passes, len(variants))
            with self.console.work("ranking every axis", "forward", tokens) as advance:
                rankings = rank_in_bases(
                    *self._asked,
                    keys,
                    self._blocks(advance),
                    self.method,
                    layers=layers,
                    pass_context=listener.on() if listener else None,
                )
            if request and listener:
                request.take_all(listener)
        return rankings

    def _ranked_from_disk(
        self, files: TeacherFiles, variants: Sequence[Resolved], layers: LayerScores | None
    ) -> dict[BasisName, Ranking]:
        keys, calibration = (
            {variant.basis: self._key(variant) for variant in variants},
            self.corpus.calibration,
        )
        tokens = width_tokens(self.resolved.config, self.resolved.work.layer_passes, len(variants))
        work = self.console.work("ranking every axis from the disk", "forward", tokens)
        with self._moments_beside(needs_moments(self.resolved.config)) as request, work as advance:
            return rank_in_bases_from_disk(
                files, calibration, keys, self._blocks(advance), self.method, layers=layers, moments=request
            )

    @contextmanager
    def _moments_beside(self, wanted: bool) -> Iterator[MomentsRequest | None]:
        """Within the context, the ranking's pass writes moments, too, if they are wanted and not there."""
        if wanted and self._saved_moments() is None:
            with self._writing_moments() as request:
                yield request
        else:
            yield None

    def _ranked_in_rounds(self, variant: Resolved, layers: LayerScores | None) -> Ranking:
        method = replace(self.method, basis=variant.basis)
        with self.console.work(
            "ranking every axis", "forward", width_tokens(variant.config, variant.work.layer_passes, 1)
        ) as advance:
            return rank_in_rounds(
                self.teacher.model,
                variant.axis_map,
                self.corpus.calibration,
                self._key(variant),
                smallest_architecture(variant.space, variant.axis_map),
                self._blocks(advance),
                method,
                phases_of(variant.config),
                judge=_judge(variant.config, self.teacher),
                layer_scores=layers,
            )

    @property
    def _asked(self) -> tuple[PreTrainedModel, AxisMap, Tensor]:
        return self.teacher.model, self.axis_map, self.corpus.calibration

    def _blocks(self, advance: Callable[[int], None]) -> Callable[[float], None]:
        """Return a function that tells of blocks in tokens."""
        return lambda blocks: advance(round(blocks * self.corpus.block))

    @property
    def _moments_key(self) -> str:
        precision = "bfloat16" if self.method.bfloat16 else "float32"
        return fingerprint(self.teacher.fingerprint, self.corpus.calibration, precision)

    def _saved_moments(self) -> Moments | None:
        return Moments.load(self.directory.moments, self._moments_key)

    @contextmanager
    def _writing_moments(self) -> Iterator[MomentsRequest]:
        """Within the context, write the moments that are handed on, in the teacher's own coordinates."""
        names = [tensor.name for tensor in self.axis_map.tensors]
        with moments_file(self.directory.moments, self._moments_key, names) as add:
            every = max(1, self.corpus.calibration.numel() // self.resolved.moments.sums.wanted)
            yield MomentsRequest(self._moments_key, add, every)

    def _moments(self) -> Moments:
        """Load or make the moments: those of every basis."""
        if (moments := self._saved_moments()) is not None:
            return moments
        groups, bfloat16 = self.resolved.moments.groups, self.method.bfloat16
        passes = 1.0 if self._files else sum(group.share for group in groups)
        with self._writing_moments() as request:
            tokens = round(passes * self.corpus.calibration.numel() / request.every)
            with self.console.work("gathering moments for repairs", "forward", tokens) as advance:
                told = self._blocks(advance)
                if self._files is not None:
                    gather_from_disk(self._files, self.corpus.calibration, request, told, bfloat16)
                else:
                    with self.teacher.on_device():
                        gather_in_groups(*self._asked, request, groups, told, bfloat16)
        moments = self._saved_moments()
        assert moments is not None, "the file was written just now"
        return moments


def _judge(config: RunConfig, teacher: Teacher) -> Judge | None:
    """Return what scores the teacher without some layers, if a task does."""
    if (task := depth_task(config)) is None:
        return None
    if (examples := task.examples()) is None:
        return harness_judge(task, teacher.tokenizer, config.task_samples)
    scorer = ExampleScorer.of(subset(examples, config.task_samples), teacher.tokenizer, teacher.model)
    return MarginCosts(scorer.examples, scorer.choices)
