"""What each stage of a run holds on the device and on the host, for any placement and optimiser.

Stages hold what lies there throughout (teacher, sorted weights, moments) and what they need themselves. The
second is counted on the code that the stage runs. A stage of training is the step with the largest student,
or its validation, whichever takes more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PretrainedConfig

from evaluators.distillation.efficiency import LONGEST_EAGER_BLOCK, first_micro_batch
from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.optimizers import OptimizerName, TrainingBytes, training_bytes, workspace_bytes
from evaluators.distillation.processes import blocks_per_process
from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.sparse import DRAWS
from evaluators.metrics.activation_memory import (
    Depths,
    Head,
    TrainingActivations,
    TrainingWork,
)
from evaluators.metrics.forward_memory import (
    ForwardWork,
    generating_bytes,
    moments_bytes,
    ranking_bytes,
    scoring_bytes,
    targets_bytes,
)
from evaluators.metrics.memory import (
    CUDA_WORKSPACE,
    PROCESS,
    Parts,
    StageNeeds,
    head_bytes,
    largest_tensor,
    one_layer_bytes,
    refit_bytes,
    rows_polynomial,
    sorting_bytes,
    stream_bytes,
    student_bytes,
    weight_bytes,
)
from search.settings.costs import workload_of
from search.settings.memory_counts import BYTES_A_ROW, COUNTS, TOKENS_AT_ONCE, pass_by_rows
from search.settings.methods import loss_of, method_of, weights_dtype
from search.settings.placement import Placement
from search.settings.targets_plan import TargetsPlan, asks_teacher, places_of
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, build
from space.cutting.basis import BasisName
from space.cutting.moments import moment_bytes

if TYPE_CHECKING:
    from search.settings.resolved import Resolved


@dataclass(frozen=True)
class StageMemory:
    """The needs of all stages of a run."""

    resolved: Resolved
    targets: TargetsPlan
    """What of the targets is kept on disk."""
    processes: int = 1
    """That train each student together."""
    sharded: bool = False
    """Whether they share its weights and states among them."""

    def of(self, placement: Placement, optimizer: OptimizerName) -> list[StageNeeds]:
        """Return the needs of every stage of this run, in their order."""
        found = [self._ranking(placement)]
        if self._needs_moments:
            found.append(self._moments(placement))
        if self.targets.form is not FormName.LIVE:
            found.append(self._targets(placement))
        if self.resolved.config.measures_latency:
            found.append(self._latency(placement))
        found.append(self._scoring(placement))
        found.append(self._distillation("distillation", placement, optimizer))
        found.append(self._distillation("retraining", placement, optimizer))
        if self.resolved.config.teacher_correction:
            found.insert(0, self._correction(placement, optimizer))
        found = [self._with_process(needs) for needs in found]
        return [needs.on_one() for needs in found] if self._shared else found

    def certainly_below(self, bytes: int) -> bool:
        """Whether a rough closed form, on the safe side, shows that everything stays below some bytes."""
        config, optimizer = self.resolved.config, OptimizerName.ADAMW
        tokens = self.micro_batch(Placement()) * config.block
        rows = int(rows_polynomial(self.largest[0]).of(self.largest[1]))
        scores = tokens * self.largest[1].layers * max(1, self.largest[1].heads) * config.block
        taught = 16 if config.teacher_correction else 3
        whole = taught * weight_bytes(self._map, torch.float32) + 2 * PROCESS
        whole += 4 * moment_bytes(self._map) if self._needs_moments else 0
        whole += 2 * self._trained[optimizer].total + 4 * BYTES_A_ROW * rows * tokens
        return whole + 8 * scores * self._eager + 8 * TOKENS_AT_ONCE * rows <= bytes

    def least(self, placement: Placement, optimizer: OptimizerName) -> int:
        """Return what retraining takes at the least: all but its activations."""
        parts = self._teaching(placement, live=self.live(retraining=True))
        return sum({**parts, **self._sorted(placement)}.values()) + self._trained[optimizer].total

    def micro_batch(self, placement: Placement) -> int:
        """Return the blocks of the first micro-batch: the placement's, or the default of the device."""
        local = blocks_per_process(self.resolved.config.batch_blocks, self.processes)
        if placement.micro_batch is not None:
            return min(local, placement.micro_batch)
        student = self.largest[1]
        return first_micro_batch(
            local, self.resolved.config.block, student.hidden * student.layers, self._device
        )

    @property
    def _device(self) -> torch.device:
        return torch.device(self.resolved.config.device)

    @property
    def _shared(self) -> bool:
        return self._device.type != "cuda"

    @property
    def _autocast(self) -> bool:
        return self.resolved.config.dtype == "bfloat16"

    @property
    def _weights(self) -> torch.dtype:
        """Of the teacher in memory, and of students before they are trained."""
        return weights_dtype(self.resolved.config)

    @cached_property
    def _map(self) -> AxisMap:
        return (self.resolved.turned or self.resolved).axis_map

    @property
    def _basis(self) -> BasisName:
        return (self.resolved.turned or self.resolved).basis

    @property
    def _eager(self) -> bool:
        """Whether students train with eager attention; see ``training_attention``."""
        short = self.resolved.config.block <= LONGEST_EAGER_BLOCK
        return self._device.type == "cpu" and self._autocast and short

    @property
    def _needs_moments(self) -> bool:
        return bool({"least-squares", "norm-scale"} & set(self.resolved.config.repair))

    @cached_property
    def _gathered(self) -> tuple[int, int]:
        """The height of the pass that gathers moments, and the sums that it leaves; 0 without moments."""
        if not self._needs_moments:
            return 0, 0
        bound = moment_bytes(self._map)
        work = self._forward(self.resolved.config.calibration_blocks)
        return COUNTS.forward("moments", work, moments_bytes, (self._by_rows + bound, bound))

    @property
    def _moment_bytes(self) -> int:
        return self._gathered[1]

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
    def _teacher_bytes(self) -> int:
        return weight_bytes(self._map, self._weights)

    @cached_property
    def _teaching_bytes(self) -> int:
        return weight_bytes(self.resolved.teaching, self._weights)

    @cached_property
    def _student_bytes(self) -> int:
        """Of the largest student as it is cut."""
        return weight_bytes(self.largest[0], self._weights, self.largest[1])

    @cached_property
    def _trained(self) -> dict[OptimizerName, TrainingBytes]:
        """What training the largest student takes without activations."""
        return {name: self._share(student_bytes(*self.largest, name)) for name in OptimizerName}

    @cached_property
    def _trained_teacher(self) -> dict[OptimizerName, TrainingBytes]:
        shapes = [one.shape for one in build(self.resolved.axis_map.config).parameters()]
        return {name: self._share(training_bytes(shapes, name)) for name in OptimizerName}

    @cached_property
    def _teaching_head(self) -> PretrainedConfig:
        """Config of the model that provides the targets, with few layers."""
        teaching = self.resolved.teaching
        return Depths.of(teaching, teaching.teacher).base.config

    def _forward(self, blocks: int, *, student: bool = False, autocast: bool = False) -> ForwardWork:
        """A pass on a batch of a text of so many blocks."""
        axis_map, architecture = self.largest if student else (self._map, self._map.teacher)
        block = self.resolved.config.block
        together = min(blocks, max(1, TOKENS_AT_ONCE // block))
        half = autocast and self._autocast
        return ForwardWork(axis_map, architecture, block, self._weights, half, together)

    def _teacher(self, placement: Placement, *, needed: bool = True) -> Parts:
        """The teacher where a stage needs it, or where it stays."""
        if not needed and not placement.teacher_stays:
            return {}
        if placement.layer_by_layer:
            return {"a layer of the teacher": one_layer_bytes(self._map, self._weights)} if needed else {}
        return {"teacher": self._teacher_bytes}

    def _teaching(self, placement: Placement, *, live: bool) -> Parts:
        """The model that provides the targets, beside students: all of it, or its head."""
        teaching = self.resolved.teaching
        other = self.resolved.teaching_map is not None and asks_teacher(self.resolved.config)
        found = dict(self._teacher(placement, needed=live and not other))
        if live and other:
            found["teaching model"] = self._teaching_bytes
        elif self.targets.form is FormName.HIDDEN and (other or not found):
            found["teacher's head"] = head_bytes(teaching, self._weights)
        return found

    def _sorted(self, placement: Placement) -> Parts:
        untied = head_bytes(self._map, self._weights) if self._basis is not BasisName.COORDINATE else 0
        if not placement.sorted_stay:
            return {}
        return {"sorted weights": self._teacher_bytes + untied}

    def _ranking(self, placement: Placement) -> StageNeeds:
        config = self.resolved.config
        method = replace(method_of(config), basis=self._basis)
        batch = COUNTS.forward(
            f"ranking {method.words}",
            self._forward(config.calibration_blocks),
            lambda work: ranking_bytes(work, method),
            self._by_rows,
        )
        sums = {"moments": self._moment_bytes} if self._moment_bytes else {}
        passes = {**sums, "activations": batch}
        turned = self._basis is not BasisName.COORDINATE
        kept = self._sorted(placement)
        height = sorting_bytes(self._map, self._weights, stays=placement.sorted_stay, turned=turned)
        copies = {"copies": max(0, height - sum(kept.values()))}
        sorting = {**self._sorted_moments, **kept, **copies}
        teacher = self._teacher(placement)
        loaded = 0 if self._shared else sum(teacher.values())
        host = {"teacher as it is loaded": loaded} if loaded else {}
        return StageNeeds("ranking", {**teacher, **_larger(passes, sorting)}, host)

    def _moments(self, placement: Placement) -> StageNeeds:
        """The sums on the device; their means on the host, and there once more when they are sorted."""
        peak, kept = self._gathered
        device = {**self._teacher(placement), "moments": kept, "activations": max(0, peak - kept)}
        if self._shared:  # the means are made when the batch is gone
            device["activations"] = max(0, peak - 2 * kept)
            return StageNeeds("moments", device, {"means of the moments": kept})
        return StageNeeds("moments", device, {"means of the moments": 2 * kept})

    def _targets(self, placement: Placement) -> StageNeeds:
        teaching = self.resolved.teaching
        work = self._forward(self.resolved.config.distillation_blocks, autocast=True)
        work = replace(work, axis_map=teaching, architecture=teaching.teacher)
        sampled = self.targets.form is FormName.SAMPLED
        batch = self._answering(work, sampled=sampled)
        found = dict(self._teacher(placement))
        if self.resolved.teaching_map is not None:
            found["teaching model"] = self._teaching_bytes
        return StageNeeds("targets", {**found, "activations": batch})

    def _latency(self, placement: Placement) -> StageNeeds:
        workload = workload_of(self.resolved.config.device)
        cached = max(
            COUNTS.forward("latency", work, lambda work: generating_bytes(work, workload), self._by_rows)
            for work in (self._forward(1), self._forward(1, student=True))
        )
        device = {
            **self._teacher(placement),
            **self._sorted(placement),
            "student": self._student_bytes,
            "activations and cache": cached,
        }
        return StageNeeds("latency", device, self._sorted_moments)

    def _scoring(self, placement: Placement) -> StageNeeds:
        """Cutting with its repair, then the loss."""
        validation = self._validation(self._weights)
        refit = refit_bytes(self._map) if self._moment_bytes else 0
        device = {
            **self._teacher(placement, needed=False),
            **self._sorted(placement),
            "student": self._student_bytes,
            "activations": max(validation, refit if self._shared else 0),
        }
        host = dict(self._sorted_moments)
        if refit and not self._shared:
            host["repair"] = refit
        return StageNeeds("scoring", device, host)

    @property
    def _sorted_moments(self) -> Parts:
        if not self._moment_bytes:
            return {}
        dropped = stream_bytes(self._map) if self._basis is BasisName.COORDINATE else 0
        return {"moments": self._moment_bytes - dropped}

    def _distillation(self, stage: str, placement: Placement, optimizer: OptimizerName) -> StageNeeds:
        config = self.resolved.config
        retraining = stage == "retraining"
        live = self.live(retraining)
        axis_map, architecture = self.largest
        own = self._trained[optimizer]
        micro = self.micro_batch(placement)
        activations = self._step(placement, optimizer, live).peak(
            micro,
            own.gradients,
            accumulates=micro < blocks_per_process(config.batch_blocks, self.processes),
        )
        tokens = micro * config.block
        if asks_teacher(config) and not live and self.targets.form is not FormName.HIDDEN:
            activations += tokens * DRAWS * 12  # ids in 8 bytes, weights in 4
        teaching = self.resolved.teaching.teacher.hidden
        activations += len(places_of(self.resolved)) * tokens * (2 * teaching + 12 * architecture.hidden)
        if live:
            activations = max(activations, own.gradients + self._answering_live(micro))
        activations = max(activations, own.gradients + self._validation(optimizer.weights))
        device = {
            **self._teaching(placement, live=live),
            **self._sorted(placement),
            "weights": own.weights,
            "gradients": own.gradients,
            "optimiser": own.states + workspace_bytes(optimizer, largest_tensor(axis_map)),
            "activations": activations - own.gradients,
        }
        host = dict(self._sorted_moments)
        if not self._shared and not placement.teacher_stays and not placement.layer_by_layer:
            host["teacher"] = self._teacher_bytes
        if not self._shared and (retraining or config.schedule == "wsd"):
            host["checkpoint"] = own.weights + own.states
        return StageNeeds(stage, device, host)

    def _correction(self, placement: Placement, optimizer: OptimizerName) -> StageNeeds:
        config, axis_map = self.resolved.config, self.resolved.axis_map
        own = self._share(
            training_bytes((one.shape for one in build(axis_map.config).parameters()), optimizer)
        )
        micro = self.micro_batch(placement)
        work = self._work(placement, optimizer, Loss({Term.CROSS_ENTROPY: 1.0}))
        step = COUNTS.step(axis_map, axis_map.teacher, work, None)
        accumulates = micro < blocks_per_process(config.batch_blocks, self.processes)
        activations = step.peak(micro, own.gradients, accumulates=accumulates) - own.gradients
        device = {
            "weights": own.weights,
            "gradients": own.gradients,
            "optimiser": own.states,
            "activations": activations,
        }
        return StageNeeds(
            "correction", device, {} if self._shared else {"checkpoint": own.weights + own.states}
        )

    def live(self, retraining: bool) -> bool:
        """Whether the teacher runs beside students of the rungs, or of retraining."""
        config = self.resolved.config
        whole = self.targets.blocks >= config.distillation_blocks
        return asks_teacher(config) and (not self.targets.blocks or (retraining and not whole))

    def _share(self, own: TrainingBytes) -> TrainingBytes:
        """Return what one of several processes holds."""
        if not self.sharded:
            return own
        return TrainingBytes(*(-(-part // self.processes) for part in own))

    def _work(self, placement: Placement, optimizer: OptimizerName, loss: Loss) -> TrainingWork:
        return TrainingWork(
            self.resolved.config.block,
            optimizer.weights,
            self._autocast,
            loss,
            eager=self._eager,
            recompute=placement.recompute,
        )

    def _step(self, placement: Placement, optimizer: OptimizerName, live: bool) -> TrainingActivations:
        config = self.resolved.config
        dense = asks_teacher(config) and (live or self.targets.form is FormName.HIDDEN)
        head = None
        if dense:
            head = Head(self._teaching_head, self._weights, torch.float32 if live else torch.bfloat16)
        loss = loss_of(config) if dense or not asks_teacher(config) else Loss({Term.CROSS_ENTROPY: 1.0})
        return COUNTS.step(*self.largest, self._work(placement, optimizer, loss), head)

    def _validation(self, weights: torch.dtype) -> int:
        blocks = self.resolved.config.validation_blocks
        work = replace(self._forward(blocks, student=True, autocast=True), weights=weights)
        return COUNTS.forward("scoring", work, scoring_bytes, self._by_rows)

    def _answering(self, work: ForwardWork, *, sampled: bool = False) -> int:
        kind = "sampled" if sampled else "hidden"
        return COUNTS.forward(kind, work, lambda work: targets_bytes(work, sampled=sampled), self._by_rows)

    def _answering_live(self, micro: int) -> int:
        """The teacher's forward pass on a micro-batch: the line through those on one block and on two."""
        work = replace(self._forward(1, autocast=True), axis_map=self.resolved.teaching)
        work = replace(work, architecture=self.resolved.teaching.teacher)
        one, two = (self._answering(replace(work, blocks=blocks)) for blocks in (1, 2))
        return one + (micro - 1) * (two - one)

    @cached_property
    def _by_rows(self) -> int:
        return pass_by_rows(self._map)

    def _with_process(self, needs: StageNeeds) -> StageNeeds:
        config = self.resolved.config
        blocks = config.calibration_blocks + config.validation_blocks + config.distillation_blocks
        host = {"process": PROCESS, "text": 4 * blocks * config.block, **needs.host}
        device = needs.device if self._shared else {"workspace": CUDA_WORKSPACE, **needs.device}
        return replace(needs, device=device, host=host)


def _larger(one: Parts, other: Parts) -> Parts:
    return max(one, other, key=lambda parts: sum(parts.values()))
