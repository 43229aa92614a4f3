"""A teacher of random weights that lies on the host, and the students, targets and trainings it gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.targets.batch import Form, FormName, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, LiveTargets
from evaluators.distillation.targets.sparse import Sampled
from evaluators.huggingface.residence import Residence
from search.settings.methods import accelerator_of, weights_dtype
from search.settings.resolved import Resolved
from search.training.peak_rates import BY_RULE
from search.training.training import Trainer, TrainingJob
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract, saved_tensors
from space.cutting.ranking import Ranking
from studies.benchmarks.distil_models import device, made
from studies.gpu.bench import release
from studies.gpu.plans import Plan, resolved_run
from studies.gpu.shapes import Shape, Work


class Subject:
    """A teacher of random weights.

    It is made on the device, which is quick, in the precision of a run, and then lies on the host. From there
    it comes to the device as the teacher of a run does that does not stay there.

    Args:
        resolved: the run that cuts it.
        folder: for targets.
    """

    def __init__(self, resolved: Resolved, folder: Path) -> None:
        self.resolved, self.folder = resolved, folder
        self.axis_map: AxisMap = resolved.axis_map
        dtype = weights_dtype(resolved.config)
        self.teacher: PreTrainedModel = made(self.axis_map.config, dtype)  # type: ignore[arg-type]
        self.teacher.requires_grad_(False)
        nn.Module.to(self.teacher, "cpu")
        self.residence = Residence(self.teacher, device(), stays=False)
        release()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The teacher's tensors by name; they lie where the teacher does at the moment."""
        return saved_tensors(self.teacher, self.axis_map)

    @cached_property
    def ranking(self) -> Ranking:
        """One that leaves every unit and layer at its place."""
        layers = torch.zeros(self.axis_map.teacher.layers)
        return Ranking({Axis.LAYERS: layers}, self.axis_map.teacher.kv_heads, "", "")

    def student(self, architecture: Architecture) -> PreTrainedModel:
        """Cut a student, which lies on the device."""
        return extract(self.weights, self.axis_map, self.ranking, architecture, device=device())

    def text(self, blocks: int) -> Tensor:
        """Return (blocks, T) random tokens in blocks of the plan's length."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.axis_map.config.get_text_config(decoder=True).vocab_size
        shape = (blocks, self.resolved.config.block)
        return torch.randint(0, vocabulary, shape, generator=generator, dtype=torch.int32)

    def targets(self, plan: Plan) -> Targets:
        """Return the teacher's targets for a step of a plan, on disk where they are kept."""
        text, precision = self.text(plan.config.batch_blocks), accelerator_of(plan.config).autocast
        if plan.form is FormName.LIVE:
            return LiveTargets(self.teacher, text, (), precision, self.residence)
        form: Form = Hidden(self.teacher) if plan.form is FormName.HIDDEN else Sampled(self.teacher)
        folder = self.folder / f"{plan.form}-{len(text)}-{id(self)}"
        found = CachedTargets(self.teacher, text, form, folder, "", (), precision, self.residence)
        found.fill()
        return found

    def train(
        self,
        plan: Plan,
        student: PreTrainedModel,
        targets: Targets,
        steps: int,
        advance: Callable[[int], None],
        *,
        validate: bool = False,
    ) -> None:
        """Train a student as a run does: same loss, optimiser, micro-batches and recomputation.

        Args:
            plan: placement and configuration.
            student: on the device; it is trained in place.
            targets: of the plan's form.
            steps: of the plan's batch.
            advance: called with 0 when the first step begins, and with its tokens after each.
            validate: whether the student is validated on a block at the end.
        """
        config = plan.config
        accelerator = accelerator_of(config)
        trainer = Trainer(config, self.teacher, self.text(1), accelerator, plan.resolved.placement)
        tokens = steps * config.batch_blocks * config.block
        job = TrainingJob(tokens, BY_RULE.of(config, student.num_parameters(), tokens), int(validate))
        stays = plan.resolved.placement.teacher_stays
        with self.residence.on_device() if stays else nullcontext():
            trainer.train(student, targets, job, advance)


class Subjects:
    """Makes the teachers that the parts ask for; only the last one is kept, and the plans of all.

    Args:
        work: how much is measured.
        folder: for configs and targets.
    """

    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self.folder = work, folder
        self._resolved: dict[str, Resolved] = {}
        self._last: tuple[str, Subject] | None = None

    def of(self, shape: Shape) -> Subject:
        """Return the teacher of a shape.

        Raises:
            InputError: the run that cuts it does not fit on this device.
        """
        if self._last is None or self._last[0] != shape.name:
            self.forget()
            if shape.name not in self._resolved:
                self._resolved[shape.name] = resolved_run(shape, self.work, self.folder)
            self._last = shape.name, Subject(self._resolved[shape.name], self.folder)
        return self._last[1]

    def forget(self) -> None:
        """Let go of the teacher that is kept."""
        self._last = None
        release()
