"""The stages of a run on a teacher of random weights, and the memory that each takes at its height."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import Checkpointing, TrainingMonitor, distil
from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, TextTargets
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.moment_passes import MomentsRequest, gather_in_groups, layer_groups
from evaluators.importance.moments import MomentsListener
from evaluators.importance.rank import rank, rank_in_bases
from evaluators.metrics.latency import time_once
from evaluators.metrics.loss import validation_loss
from search.settings.costs import workload_of
from search.settings.methods import accelerator_of, method_of, weights_dtype
from search.settings.resolved import Resolved
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance, student_map
from space.cutting.moments import Moments, moments_file
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from studies.benchmarks.distil_models import made
from studies.benchmarks.distil_process import Peak

#: Steps of a training: the first makes the optimiser's states, the second finds them.
_STEPS = 2


def measured_peak(resolved: Resolved, architecture: Architecture, stage: str, folder: Path) -> int:
    """Return the bytes that a stage takes at its height, what lies there throughout included.

    Args:
        resolved: the run.
        architecture: of the student that is scored and trained.
        stage: its name in the ledger.
        folder: for files.
    """
    axis_map = resolved.axis_map
    tiny = student_map(axis_map, replace(architecture, layers=1), [0])
    Stages(resolved, tiny, tiny.teacher, folder / "tiny").run(stage, lambda: None)
    gc.collect()
    peak = Peak()
    stages = Stages(resolved, axis_map, architecture, folder / stage)
    stages.run(stage, peak.begin_again)
    return peak.bytes()


@dataclass(frozen=True)
class Stages:
    """A teacher of random weights with what the stages of a run hold beside it."""

    resolved: Resolved
    axis_map: AxisMap
    architecture: Architecture
    folder: Path

    def run(self, stage: str, begins: Callable[[], None]) -> None:
        """Run a stage.

        Args:
            stage: its name.
            begins: called when what earlier stages left is there.
        """
        getattr(self, f"_{stage}")(begins)

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        model = made(self.axis_map.config, weights_dtype(self.resolved.config))  # type: ignore[arg-type]
        return model.requires_grad_(False)

    @cached_property
    def _text(self) -> Tensor:
        config, generator = self.resolved.config, torch.Generator().manual_seed(0)
        vocabulary = self.axis_map.config.get_text_config(decoder=True).vocab_size
        shape = (config.batch_blocks, config.block)
        return torch.randint(0, vocabulary, shape, generator=generator, dtype=torch.int32)

    @cached_property
    def _drawn(self) -> Ranking:
        """By lot, without a pass."""
        method = Method(width=Width.RANDOM, depth=Depth.RANDOM)
        return rank(self._teacher, self.axis_map, self._text, "", method=method)

    @cached_property
    def _canonical(self) -> dict[str, Tensor]:
        return sort_by_importance(saved_tensors(self._teacher, self.axis_map), self.axis_map, self._drawn)

    @cached_property
    def _repair(self) -> Repair:
        return Repair(least_squares=True, moments=self._sorted_moments())

    def _sorted_moments(self) -> Moments:
        self.folder.mkdir(parents=True, exist_ok=True)
        path, names = self.folder / "moments.safetensors", [tensor.name for tensor in self.axis_map.tensors]
        with moments_file(path, "", names) as add:
            groups, request = layer_groups(self.axis_map), MomentsRequest("", add)
            gather_in_groups(self._teacher, self.axis_map, self._text, request, groups)
        moments = Moments.load(path, "")
        assert moments is not None
        return moments.sorted_by(self.axis_map, self._drawn)

    def _student(self) -> PreTrainedModel:
        return extract(self._canonical, self.axis_map, self._drawn, self.architecture, repair=self._repair)

    def _cached(self) -> CachedTargets:
        precision = accelerator_of(self.resolved.config).autocast
        form = Hidden(self._teacher)
        return CachedTargets(self._teacher, self._text, form, self.folder / "targets", "", (), precision)

    def _ranking(self, begins: Callable[[], None]) -> None:
        """With the moments that come from the same pass, and the sorting that follows."""
        listener = MomentsListener(self._teacher, self.axis_map, tokens=self._text.numel())
        method = method_of(self.resolved.config)
        begins()
        keys = {BasisName.COORDINATE: ""}
        rankings = rank_in_bases(
            self._teacher, self.axis_map, self._text, keys, method=method, pass_context=listener.on()
        )
        ranking = rankings[BasisName.COORDINATE]
        assert sort_by_importance(saved_tensors(self._teacher, self.axis_map), self.axis_map, ranking)

    def _moments(self, begins: Callable[[], None]) -> None:
        assert self._drawn is not None
        begins()
        self._sorted_moments()

    def _targets(self, begins: Callable[[], None]) -> None:
        targets = self._cached()
        begins()
        targets.fill()

    def _latency(self, begins: Callable[[], None]) -> None:
        student, workload = self._student(), workload_of(self.resolved.config.device)
        begins()
        for model in (self._teacher, student):
            time_once(model, workload)

    def _scoring(self, begins: Callable[[], None]) -> None:
        assert self._canonical
        assert self._repair is not None
        begins()
        self._validated(self._student())

    def _validated(self, model: PreTrainedModel) -> float:
        with accelerator_of(self.resolved.config).autocast():
            return validation_loss(model, self._text)

    def _distillation(self, begins: Callable[[], None]) -> None:
        targets, student = self._filled(), self._student()
        begins()
        self._trained(student, targets)

    def _retraining(self, begins: Callable[[], None]) -> None:
        targets, student = self._filled(), self._student()
        files = Checkpointing(
            path=self.folder / "student.safetensors",
            key="",
            seconds=0.0,
            best=self.folder / "best.safetensors",
        )
        begins()
        self._trained(student, targets, files)

    def _correction(self, begins: Callable[[], None]) -> None:
        model = self._teacher.requires_grad_(True)
        begins()
        targets = TextTargets(self._text, model.device)
        self._trained(model, targets, loss=Loss({Term.CROSS_ENTROPY: 1.0}))

    def _filled(self) -> Targets:
        targets = self._cached()
        targets.fill()
        return targets

    def _trained(
        self,
        student: PreTrainedModel,
        targets: Targets,
        files: Checkpointing | None = None,
        loss: Loss | None = None,
    ) -> None:
        config = self.resolved.config
        step = config.batch_blocks * config.block
        schedule = Schedule(
            tokens=_STEPS * step, blocks=config.batch_blocks, block=config.block, peak_rate=1e-4
        )
        monitor = TrainingMonitor(validate=self._validated, times=1)
        distil(student, targets, schedule, accelerator_of(config), monitor, files, loss=loss)
