"""What each stage of a run holds on the device and on the host, for any placement and optimiser.

Stages hold what lies there throughout (teacher, sorted weights, moments) and what they need themselves. The
second is counted on the code that the stage runs. A stage of training is the step with the largest student,
or its validation, whichever takes more. In a nested search the weights that are trained are the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.optimizers import OptimizerName, training_bytes, workspace_bytes
from evaluators.distillation.processes import blocks_per_process
from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.sparse import DRAWS
from evaluators.metrics.forward_memory import (
    generating_bytes,
    ranking_bytes,
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
    weight_bytes,
)
from search.settings.config import NESTED
from search.settings.costs import workload_of
from search.settings.memory_counts import BYTES_A_ROW, COUNTS, TOKENS_AT_ONCE
from search.settings.methods import method_of
from search.settings.placement import Placement
from search.settings.run_sizes import RunSizes
from search.settings.targets_plan import asks_teacher, places_of
from space.axes.axis_map import build
from space.cutting.basis import BasisName


@dataclass(frozen=True)
class StageMemory:
    """The needs of all stages of a run."""

    sizes: RunSizes

    def of(self, placement: Placement, optimizer: OptimizerName) -> list[StageNeeds]:
        """Return the needs of every stage of this run, in their order."""
        found = [self._ranking(placement)]
        if self.sizes.needs_moments and not placement.layer_by_layer:
            found.append(self._moments(placement))
        if self.sizes.targets.form is not FormName.LIVE:
            found.append(self._targets(placement))
        if self.sizes.resolved.config.measures_latency:
            found.append(self._latency(placement))
        found.append(self._scoring(placement))
        found.append(self._distillation("distillation", placement, optimizer))
        found.append(self._distillation("retraining", placement, optimizer))
        if self.sizes.resolved.config.teacher_correction:
            found.insert(0, self._correction(placement, optimizer))
        found = [self._with_process(needs) for needs in found]
        return [needs.on_one() for needs in found] if self.sizes.shared else found

    def certainly_below(self, bytes: int) -> bool:
        """Whether a rough closed form, on the safe side, shows that everything stays below some bytes."""
        config, optimizer = self.sizes.resolved.config, OptimizerName.ADAMW
        tokens = self.sizes.micro_batch(Placement()) * config.block
        rows = int(rows_polynomial(self.sizes.largest[0]).of(self.sizes.largest[1]))
        scores = tokens * self.sizes.largest[1].layers * max(1, self.sizes.largest[1].heads) * config.block
        taught = 16 if config.teacher_correction or config.search == NESTED else 3
        whole = taught * weight_bytes(self.sizes.axis_map, torch.float32) + 2 * PROCESS
        whole += 4 * self.sizes.moments.sums.of_layers(None) if self.sizes.needs_moments else 0
        whole += 2 * self.sizes.trained[optimizer].total + 4 * BYTES_A_ROW * rows * tokens
        return whole + 8 * scores * self.sizes.eager + 8 * TOKENS_AT_ONCE * rows <= bytes

    def least(self, placement: Placement, optimizer: OptimizerName) -> int:
        """Return what retraining takes at the least: all but its activations."""
        parts = self._teaching(placement, live=self.sizes.live(retraining=True))
        return sum({**parts, **self._sorted(placement)}.values()) + self.sizes.trained[optimizer].total

    def _teacher(self, placement: Placement, *, needed: bool = True) -> Parts:
        """The teacher where a stage needs it, or where it stays."""
        if not needed and not placement.teacher_stays:
            return {}
        if placement.layer_by_layer:
            return (
                {"a layer of the teacher": one_layer_bytes(self.sizes.axis_map, self.sizes.weights)}
                if needed
                else {}
            )
        return {"teacher": self.sizes.teacher}

    def _teaching(self, placement: Placement, *, live: bool) -> Parts:
        """The model that provides the targets, beside students: all of it, or its head."""
        teaching = self.sizes.resolved.teaching
        other = self.sizes.resolved.teaching_map is not None and asks_teacher(self.sizes.resolved.config)
        found = dict(self._teacher(placement, needed=live and not other))
        if live and other:
            found["teaching model"] = self.sizes.teaching
        elif live and placement.layer_by_layer:  # each step asks the whole of it
            found = {"teacher": self.sizes.teacher}
        elif self.sizes.targets.form is FormName.HIDDEN and (other or not found):
            found["teacher's head"] = head_bytes(teaching, self.sizes.weights)
        return found

    def _sorted(self, placement: Placement) -> Parts:
        return {"sorted weights": self.sizes.teacher} if placement.sorted_stay else {}

    def _ranking(self, placement: Placement) -> StageNeeds:
        config = self.sizes.resolved.config
        method = replace(method_of(config), basis=self.sizes.basis)
        batch = COUNTS.forward(
            f"ranking {method.words}",
            self.sizes.forward(config.calibration_blocks),
            lambda work: ranking_bytes(work, method),
            self.sizes.by_rows,
        )
        passes = {"activations": batch}
        if self.sizes.needs_moments and (placement.layer_by_layer or self.sizes.moments.beside):
            passes = {
                "moments": self.sizes.sums(placement),
                "activations": max(batch, self.sizes.gathering),
            }
        turned = self.sizes.basis is not BasisName.COORDINATE
        kept = self._sorted(placement)
        height = sorting_bytes(
            self.sizes.axis_map, self.sizes.weights, stays=placement.sorted_stay, turned=turned
        )
        copies = {"copies": max(0, height - sum(kept.values()))}
        sorting = {**kept, **copies}
        teacher = self._teacher(placement)
        loaded = 0 if self.sizes.shared else sum(teacher.values())
        host = {"teacher as it is loaded": loaded} if loaded else {}
        return StageNeeds("ranking", {**teacher, **_larger(passes, sorting)}, host)

    def _moments(self, placement: Placement) -> StageNeeds:
        """The sums on the device; the mean of one of them at a time on the host, on its way to the disk."""
        passing, mean = self.sizes.gathering, self.sizes.moments.sums.largest
        device = {**self._teacher(placement), "moments": self.sizes.sums(placement)}
        if self.sizes.shared:  # the means are made when the batch is gone
            return StageNeeds("moments", {**device, "activations": max(passing, mean)})
        return StageNeeds("moments", {**device, "activations": max(passing, mean)}, {"a moment": mean})

    def _targets(self, placement: Placement) -> StageNeeds:
        teaching = self.sizes.resolved.teaching
        work = self.sizes.forward(self.sizes.resolved.config.distillation_blocks, autocast=True)
        work = replace(work, axis_map=teaching, architecture=teaching.teacher)
        sampled = self.sizes.targets.form is FormName.SAMPLED
        batch = self.sizes.answering(work, sampled=sampled)
        found = dict(self._teacher(placement))
        if self.sizes.resolved.teaching_map is not None:
            found["teaching model"] = self.sizes.teaching
        return StageNeeds("targets", {**found, "activations": batch})

    def _latency(self, placement: Placement) -> StageNeeds:
        workload = workload_of(self.sizes.resolved.config.device)
        cached = max(
            COUNTS.forward("latency", work, lambda work: generating_bytes(work, workload), self.sizes.by_rows)
            for work in (self.sizes.forward(1), self.sizes.forward(1, student=True))
        )
        device = {
            **self._teacher(placement),
            **self._sorted(placement),
            "student": self.sizes.student,
            "activations and cache": cached,
        }
        return StageNeeds("latency", device)

    def _scoring(self, placement: Placement) -> StageNeeds:
        """Cutting with its repair, then the loss."""
        validation = self.sizes.validation(self.sizes.weights)
        refit = 0
        if self.sizes.needs_moments:
            refit = refit_bytes(self.sizes.axis_map, halved=self.sizes.moments.sums.halved)
        device = {
            **self._teacher(placement, needed=False),
            **self._sorted(placement),
            "student": self.sizes.student,
            "activations": max(validation, refit),
        }
        return StageNeeds("scoring", device)

    def _distillation(self, stage: str, placement: Placement, optimizer: OptimizerName) -> StageNeeds:
        config = self.sizes.resolved.config
        retraining = stage == "retraining"
        live = self.sizes.live(retraining)
        axis_map, architecture = self.sizes.largest
        own = self.sizes.trained[optimizer]
        nested = config.search == NESTED and not retraining
        held = self.sizes.trained_teacher[optimizer] if nested else own
        micro = self.sizes.micro_batch(placement)
        activations = self.sizes.step(placement, optimizer, live).peak(
            micro,
            own.gradients,
            accumulates=micro < blocks_per_process(config.batch_blocks, self.sizes.processes),
        )
        tokens = micro * config.block
        if asks_teacher(config) and not live and self.sizes.targets.form is not FormName.HIDDEN:
            activations += tokens * DRAWS * 12  # ids in 8 bytes, weights in 4
        teaching = self.sizes.resolved.teaching.teacher.hidden
        activations += (
            len(places_of(self.sizes.resolved)) * tokens * (2 * teaching + 12 * architecture.hidden)
        )
        if live:
            activations = max(activations, own.gradients + self.sizes.answering_live(micro))
        if retraining and config.long_block:
            activations = max(activations, self._long_part(placement, optimizer, own.gradients))
        activations = max(activations, own.gradients + self.sizes.validation(optimizer.weights))
        device = {
            **self._teaching(placement, live=live),
            **self._sorted(placement),
            "weights": held.weights,
            "gradients": held.gradients,
            "optimiser": held.states + workspace_bytes(optimizer, largest_tensor(axis_map)),
            "activations": activations - own.gradients,
        }
        host: dict[str, int] = {}
        if not self.sizes.shared and not placement.teacher_stays and not placement.layer_by_layer:
            host["teacher"] = self.sizes.teacher
        if not self.sizes.shared and (retraining or nested or config.schedule == "wsd"):
            host["checkpoint"] = held.weights + held.states
        return StageNeeds(stage, device, host)

    def _long_part(self, placement: Placement, optimizer: OptimizerName, gradients: int) -> int:
        """Activations and gradients of a step on longer blocks, which answers of the live teacher precede."""
        config = self.sizes.resolved.config
        long = config.long_block
        micro = max(1, self.sizes.micro_batch(placement) * config.block // long)
        whole = blocks_per_process(config.batch_blocks * config.block // long, self.sizes.processes)
        live = asks_teacher(config)
        step = self.sizes.step(placement, optimizer, live, long)
        learnt = step.peak(micro, gradients, accumulates=micro < whole)
        return max(learnt, gradients + self.sizes.answering_live(micro, long)) if live else learnt

    def _correction(self, placement: Placement, optimizer: OptimizerName) -> StageNeeds:
        config, axis_map = self.sizes.resolved.config, self.sizes.resolved.axis_map
        own = self.sizes._share(
            training_bytes((one.shape for one in build(axis_map.config).parameters()), optimizer)
        )
        micro = self.sizes.micro_batch(placement)
        work = self.sizes.work(placement, optimizer, Loss({Term.CROSS_ENTROPY: 1.0}))
        step = COUNTS.step(axis_map, axis_map.teacher, work, None)
        accumulates = micro < blocks_per_process(config.batch_blocks, self.sizes.processes)
        activations = step.peak(micro, own.gradients, accumulates=accumulates) - own.gradients
        device = {
            "weights": own.weights,
            "gradients": own.gradients,
            "optimiser": own.states,
            "activations": activations,
        }
        return StageNeeds(
            "correction", device, {} if self.sizes.shared else {"checkpoint": own.weights + own.states}
        )

    def _with_process(self, needs: StageNeeds) -> StageNeeds:
        config = self.sizes.resolved.config
        blocks = config.calibration_blocks + config.validation_blocks + config.distillation_blocks
        host = {"process": PROCESS, "text": 4 * blocks * config.block, **needs.host}
        device = needs.device if self.sizes.shared else {"workspace": CUDA_WORKSPACE, **needs.device}
        return replace(needs, device=device, host=host)


def _larger(one: Parts, other: Parts) -> Parts:
    return max(one, other, key=lambda parts: sum(parts.values()))
