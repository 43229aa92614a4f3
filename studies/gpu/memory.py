"""The ledger beside what PyTorch allocates at its height, while students are trained for a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.batch import FormName
from studies.benchmarks.distil_models import Marks
from studies.benchmarks.distil_process import Peak
from studies.gpu.bench import Bench, out_of_memory_errors, release
from studies.gpu.plans import AUTO, Plan, plan_of
from studies.gpu.shapes import Shape
from studies.gpu.subject import Subject, Subjects

#: The first makes the optimiser's states, the others find them.
_STEPS = 3
#: How much less and more than measured may be foretold.
_LEAST, _MOST = 0.9, 1.15
#: Targets and optimisers: what the ledger takes, and 8-bit states.
_TRAININGS = (
    (FormName.HIDDEN, AUTO),
    (FormName.LIVE, AUTO),
    (FormName.HIDDEN, (OptimizerName.ADAMW_8BIT,)),
)


def measure_memory(bench: Bench, subjects: Subjects) -> None:
    """Measure every kind of training with every shape."""
    for shape in bench.work.shapes:
        for form, optimizers in _TRAININGS:
            chosen = "the ledger's optimiser" if optimizers is AUTO else "8-bit states"
            what = f"{shape.name} to {bench.work.budget}, {form} targets, {chosen}"
            bench.measure(what, partial(_measured, bench, subjects, shape, form, optimizers))


def _measured(
    bench: Bench, subjects: Subjects, shape: Shape, form: FormName, optimizers: Sequence[OptimizerName]
) -> dict[str, Any]:
    subject = subjects.of(shape)
    return peak_of(bench, subject, plan_of(subject.resolved, form, subjects.folder, optimizers))


def peak_of(bench: Bench, subject: Subject, plan: Plan) -> dict[str, Any]:
    """Train the student that takes the most memory, and compare its peak with the ledger's.

    In bytes. ``outside`` is what the device has in use beyond PyTorch's pool: the CUDA context, for which the
    ledger allows ``workspace``, and other processes.
    """
    plan = plan.with_step(0)
    peak, before, marks = Peak(), out_of_memory_errors(), Marks()
    student = subject.student(plan.architecture)
    parameters = student.num_parameters()
    targets = subject.targets(plan)
    release()
    peak.begin_again()

    def advance(tokens: int) -> None:
        marks()
        bench.tick()

    subject.train(plan, student, targets, _STEPS, advance, validate=True)
    measured, foretold = peak.bytes(), sum(plan.foretold.values())
    ratio, ooms = foretold / max(1, measured), out_of_memory_errors() - before
    found = {
        "optimizer": plan.config.optimizer,
        "foretold_gb": foretold / 1e9,
        "measured_gb": measured / 1e9,
        "ratio": ratio,
        "holds": _LEAST <= ratio <= _MOST,
        "fits": not ooms,
        "out_of_memory_errors": ooms,
        "step_s": min(marks.between()),
    }
    return found | _pool() | {"parameters": parameters} | _setting(plan)


def _setting(plan: Plan) -> dict[str, Any]:
    placement = plan.resolved.placement
    return {
        "foretold_bytes": plan.foretold,
        "architecture": plan.architecture.label,
        "block": plan.config.block,
        "step_blocks": plan.config.batch_blocks,
        "micro_batch": plan.micro,
        "recompute": placement.recompute,
        "teacher_stays": placement.teacher_stays,
    }


def _pool() -> dict[str, Any]:
    """Return what PyTorch reserved at its height, how often it tidied up, and what is in use beyond it."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        "outside_gb": (total - free - torch.cuda.memory_reserved()) / 1e9,
        "device_gb": total / 1e9,
    }
