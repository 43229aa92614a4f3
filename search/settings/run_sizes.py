"""The sizes that the needs of a run's stages are made of: weights in closed form, and counts of its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PretrainedConfig

from evaluators.distillation.efficiency import LONGEST_EAGER_BLOCK, first_micro_batch
from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.optimizers import OptimizerName, TrainingBytes, training_bytes
from evaluators.distillation.processes import blocks_per_process
from evaluators.distillation.targets.batch import FormName
from evaluators.metrics.activation_memory import (
    Depths,
    Head,
    TrainingActivations,
    TrainingWork,
)
from evaluators.metrics.forward_memory import (
    ForwardWork,
    moments_bytes,
    scoring_bytes,
    targets_bytes,
)
from evaluators.metrics.memory import (
    rows_polynomial,
    student_shapes,
    weight_bytes,
)
from search.settings.memory_counts import BYTES_A_ROW, COUNTS, TOKENS_AT_ONCE, pass_by_rows
from search.settings.methods import loss_of, weights_dtype
from search.settings.moments_plan import MomentsPlan, needs_moments
from search.settings.placement import Placement
from search.settings.targets_plan import TargetsPlan, asks_teacher
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, build
from space.cutting.basis import BasisName

if TYPE_CHECKING:
    from search.settings.resolved import Resolved


@dataclass(frozen=True)
class RunSizes:
    """The bytes of models and passes of a run, computed once each."""

    resolved: Resolved
    targets: TargetsPlan
    """What of the targets is kept on disk."""
    processes: int = 1
    """That train each student together."""
    sharded: bool = False
    """Whether they share its weights and states among them."""

    def micro_batch(self, placement: Placement) -> int:
        """Return the blocks of the first micro-batch: the placement's, or the default of the device."""
        local = blocks_per_process(self.resolved.config.batch_blocks, self.processes)
        if placement.micro_batch is not None:
            return min(local, placement.micro_batch)
        student = self.largest[1]
        return first_micro_batch(
            local, self.resolved.config.block, student.hidden * student.layers, self.device
        )

    @property
    def device(self) -> torch.device:
        """Of the run."""
        return torch.device(self.resolved.config.device)

    @property
    def shared(self) -> bool:
        """Whether device and host are one."""
        return self.device.type != "cuda"

    @property
    def autocast(self) -> bool:
        """Whether products run in bfloat16."""
        return self.resolved.config.dtype == "bfloat16"

    @property
    def weights(self) -> torch.dtype:
        """Of the teacher in memory, and of students before they are trained."""
        return weights_dtype(self.resolved.config)

    @cached_property
    def axis_map(self) -> AxisMap:
        """The teacher's, in the basis that takes more."""
        return (self.resolved.turned or self.resolved).axis_map

    @property
    def basis(self) -> BasisName:
        """Of ``axis_map``."""
        return (self.resolved.turned or self.resolved).basis

    @property
    def eager(self) -> bool:
        """Whether students train with eager attention; see ``training_attention``."""
        short = self.resolved.config.block <= LONGEST_EAGER_BLOCK
        return self.device.type == "cpu" and self.autocast and short

    @property
    def needs_moments(self) -> bool:
        """Whether repairs need moments."""
        return needs_moments(self.resolved.config)

    @cached_property
    def moments(self) -> MomentsPlan:
        """How they are gathered."""
        return self.resolved.moments

    @cached_property
    def gathering(self) -> int:
        """What the pass that gathers moments takes beside their sums."""
        work = self.forward(self.resolved.config.calibration_blocks)
        peak, sums = COUNTS.forward("moments", work, moments_bytes, (self.by_rows, 0))
        return peak - sums

    def sums(self, placement: Placement) -> int:
        """Return the bytes of the sums that are held at once, in float64."""
        return self.moments.sums.of_layers(1 if placement.layer_by_layer else self.moments.layers)

    @cached_property
    def largest(self) -> tuple[AxisMap, Architecture]:
        """The student, of any basis, that takes the most memory by the closed forms."""
        variants = [self.resolved, *([self.resolved.turned] if self.resolved.turned else [])]
        tokens = self.resolved.config.block
        found = []
        for variant in variants:
            space = variant.space
            rows = rows_polynomial(variant.axis_map).at({axis: space.column(axis) for axis in Axis})
            sizes = 16 * space.parameters + BYTES_A_ROW * tokens * rows
            place = int(np.argmax(sizes))
            found.append((int(sizes[place]), variant.axis_map, space.architectures[place]))
        _, axis_map, architecture = max(found, key=lambda one: one[0])
        return axis_map, architecture

    @cached_property
    def teacher(self) -> int:
        """Bytes of the teacher in memory."""
        return weight_bytes(self.axis_map, self.weights)

    @cached_property
    def teaching(self) -> int:
        """Bytes of the model that provides the targets."""
        return weight_bytes(self.resolved.teaching, self.weights)

    @cached_property
    def student(self) -> int:
        """Of the largest student as it is cut."""
        return weight_bytes(self.largest[0], self.weights, self.largest[1])

    @cached_property
    def trained(self) -> dict[OptimizerName, TrainingBytes]:
        """What training the largest student takes without activations."""
        shapes = student_shapes(*self.largest)
        return {name: self._share(training_bytes(shapes, name)) for name in OptimizerName}

    @cached_property
    def trained_teacher(self) -> dict[OptimizerName, TrainingBytes]:
        """What training the teacher itself takes without activations."""
        shapes = [one.shape for one in build(self.resolved.axis_map.config).parameters()]
        return {name: self._share(training_bytes(shapes, name)) for name in OptimizerName}

    @cached_property
    def teaching_head(self) -> PretrainedConfig:
        """Config of the model that provides the targets, with few layers."""
        teaching = self.resolved.teaching
        return Depths.of(teaching, teaching.teacher).base.config

    def forward(
        self, blocks: int, *, student: bool = False, autocast: bool = False, block: int | None = None
    ) -> ForwardWork:
        """A pass on a batch of a text of so many blocks, of the run's length or of another."""
        axis_map, architecture = self.largest if student else (self.axis_map, self.axis_map.teacher)
        block = block or self.resolved.config.block
        together = min(blocks, max(1, TOKENS_AT_ONCE // block))
        half = autocast and self.autocast
        return ForwardWork(axis_map, architecture, block, self.weights, half, together)

    def live(self, retraining: bool) -> bool:
        """Whether the teacher runs beside students of the rungs, or of retraining."""
        config = self.resolved.config
        whole = self.targets.blocks >= config.distillation_blocks and not config.long_block
        return asks_teacher(config) and (not self.targets.blocks or (retraining and not whole))

    def _share(self, own: TrainingBytes) -> TrainingBytes:
        """Return what one of several processes holds."""
        if not self.sharded:
            return own
        return TrainingBytes(*(-(-part // self.processes) for part in own))

    def work(
        self, placement: Placement, optimizer: OptimizerName, loss: Loss, block: int | None = None
    ) -> TrainingWork:
        """Return what a training step computes, on blocks of the run's length or of another."""
        return TrainingWork(
            block or self.resolved.config.block,
            optimizer.weights,
            self.autocast,
            loss,
            eager=self.eager,
            recompute=placement.recompute,
        )

    def step(
        self, placement: Placement, optimizer: OptimizerName, live: bool, block: int | None = None
    ) -> TrainingActivations:
        """Return the activations of a step with the largest student; ``block`` as in ``work``."""
        config = self.resolved.config
        dense = asks_teacher(config) and (live or self.targets.form is FormName.HIDDEN)
        head = None
        if dense:
            head = Head(self.teaching_head, self.weights, torch.float32 if live else torch.bfloat16)
        loss = loss_of(config) if dense or not asks_teacher(config) else Loss({Term.CROSS_ENTROPY: 1.0})
        return COUNTS.step(*self.largest, self.work(placement, optimizer, loss, block), head)

    def validation(self, weights: torch.dtype) -> int:
        """Return what a validation of the largest student takes beside its weights."""
        blocks = self.resolved.config.validation_blocks
        work = replace(self.forward(blocks, student=True, autocast=True), weights=weights)
        return COUNTS.forward("scoring", work, scoring_bytes, self.by_rows)

    def answering(self, work: ForwardWork, *, sampled: bool = False) -> int:
        """Return what a pass takes that makes targets."""
        kind = "sampled" if sampled else "hidden"
        return COUNTS.forward(kind, work, lambda work: targets_bytes(work, sampled=sampled), self.by_rows)

    def answering_live(self, micro: int, block: int | None = None) -> int:
        """The teacher's forward pass on a micro-batch: the line through those on one block and on two."""
        work = replace(self.forward(1, autocast=True, block=block), axis_map=self.resolved.teaching)
        work = replace(work, architecture=self.resolved.teaching.teacher)
        one, two = (self.answering(replace(work, blocks=blocks)) for blocks in (1, 2))
        return one + (micro - 1) * (two - one)

    @cached_property
    def by_rows(self) -> int:
        """The closed form of a pass of the teacher."""
        return pass_by_rows(self.axis_map)
