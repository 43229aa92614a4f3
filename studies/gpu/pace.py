"""Tokens a second of distillation, and the share of the device's matrix rate that its products reach.

Utilisation counts what the models need: 6 operations for each token and weight of the student that multiplies
it, and with live targets 2 for each of the teacher's (arXiv 2204.02311, appendix B). Recomputed activations,
the teacher's head on cached final states, and attention over tokens do not count.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from evaluators.distillation.module import liger_installed
from evaluators.distillation.targets.batch import FormName
from search.settings.costs import typical_architecture
from space.counting.counting import matrix_polynomial
from studies.benchmarks.distil_gpu import matrix_rate
from studies.benchmarks.distil_models import Marks
from studies.gpu.bench import Bench, NotHereError, OutOfTimeError, out_of_memory_errors
from studies.gpu.plans import Plan, plan_of
from studies.gpu.subject import Subject, Subjects

#: Steps that are timed, behind one that allocates and, compiled, behind another that may compile once more.
_TIMED = 2
#: Steps after which a compiled training pays off; it is ended long before.
_ENDLESS = 10**7
#: Seconds that a compiled training takes at least, which is an assumption.
_COMPILING = 60.0
#: Share of the measured matrix rate that is aimed at, and hours for a billion tokens.
_UTILISATION = 0.45
_HOURS = {FormName.LIVE: 25.0, FormName.HIDDEN: 15.0, FormName.SAMPLED: 15.0}


@dataclass(frozen=True)
class Variant:
    """A kind of training."""

    form: FormName
    compiled: bool = False
    liger: bool = False
    """Whether Liger's loss may be used; it takes final states, cached or live."""

    @property
    def words(self) -> str:
        """For the figures."""
        extras = [name for name, on in (("torch.compile", self.compiled), ("Liger", self.liger)) if on]
        return f"{self.form} targets, {' and '.join(extras) or 'plain'}"


VARIANTS = (
    Variant(FormName.LIVE),
    Variant(FormName.HIDDEN),
    Variant(FormName.SAMPLED),
    Variant(FormName.HIDDEN, liger=True),
    Variant(FormName.HIDDEN, compiled=True),
    Variant(FormName.LIVE, compiled=True),
    Variant(FormName.LIVE, liger=True),
    Variant(FormName.LIVE, compiled=True, liger=True),
    Variant(FormName.HIDDEN, compiled=True, liger=True),
    Variant(FormName.SAMPLED, compiled=True),
)


class _EnoughError(Exception):
    """Ends a training that has been timed."""


def measure_pace(bench: Bench, subjects: Subjects) -> None:
    """Measure the matrix rate, then every variant on a typical student of the first shape."""
    side = bench.work.matrix
    rate = bench.attempt("matrix product", lambda: matrix_rate(side))
    if rate is None:
        return
    bench.findings.add(bench.part, f"bfloat16 product of {side} × {side}", {"tflops": rate / 1e12})
    for variant in VARIANTS:
        work = partial(_measured, bench, subjects, variant, rate)
        bench.measure(variant.words, work, _COMPILING if variant.compiled else 0.0)


def _measured(bench: Bench, subjects: Subjects, variant: Variant, rate: float) -> dict[str, Any]:
    check_here(variant)
    subject = subjects.of(bench.work.shapes[0])
    plan = plan_of(subject.resolved, variant.form, subjects.folder)
    return pace_of(bench, subject, plan.with_step(bench.work.step_blocks), variant, rate)


def check_here(variant: Variant) -> None:
    """Check that what a variant needs is here.

    Raises:
        NotHereError: something is not.
    """
    cuda = torch.cuda.is_available()
    if variant.liger and not (cuda and liger_installed()):
        raise NotHereError("liger-kernel is not installed" if cuda else "Liger runs on CUDA")
    if not variant.compiled:
        return
    if not cuda:
        raise NotHereError("blocks are compiled on CUDA")
    if importlib.util.find_spec("triton") is None:
        raise NotHereError("torch.compile needs triton, which is not installed")
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        raise NotHereError("torch.compile needs a C compiler, and none is on the PATH")


def pace_of(bench: Bench, subject: Subject, plan: Plan, variant: Variant, rate: float) -> dict[str, Any]:
    """Train a student for a few steps, and set their speed beside the rate of a matrix product.

    Args:
        bench: has the time that is left.
        subject: the teacher.
        plan: of the training.
        variant: with which extras.
        rate: operations a second of a matrix product.
    """
    architecture = typical_architecture(subject.resolved.space)
    student, targets = subject.student(architecture), subject.targets(plan)
    compiled, ooms = (counters["frames"]["ok"], counters["frames"]["total"]), out_of_memory_errors()
    with _without_liger(variant):
        seconds = median(_step_seconds(bench, subject, plan, (student, targets), compiled=variant.compiled))
    tokens = plan.config.batch_blocks * plan.config.block / seconds
    flops = tokens * flops_per_token(subject, plan)
    hours = 1e9 / tokens / 3600
    found = {
        "optimizer": plan.config.optimizer,
        "tokens_per_s": tokens,
        "hours_per_billion_tokens": hours,
        "tflops": flops / 1e12,
        "utilisation": flops / rate,
        "holds": flops / rate >= _UTILISATION and hours <= _HOURS[variant.form],
        "out_of_memory_errors": out_of_memory_errors() - ooms,
        "step_s": seconds,
        "step_blocks": plan.config.batch_blocks,
        "micro_batch": plan.micro,
        "recompute": plan.resolved.placement.recompute,
        "architecture": architecture.label,
        "parameters": student.num_parameters(),
    }
    if variant.compiled:  # a block that cannot be compiled runs all the same, uncompiled
        ok, total = counters["frames"]["ok"] - compiled[0], counters["frames"]["total"] - compiled[1]
        found |= {"frames_compiled": ok, "frames_tried": total}
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def flops_per_token(subject: Subject, plan: Plan) -> int:
    """Return the operations that training a typical student needs for each token."""
    matrices, axis_map = matrix_polynomial(subject.axis_map), subject.axis_map
    student = int(matrices.of(typical_architecture(subject.resolved.space)))
    teacher = int(matrices.of(axis_map.teacher)) if plan.form is FormName.LIVE else 0
    return 6 * student + 2 * teacher


def _without_liger(variant: Variant) -> AbstractContextManager[object]:
    """Within the context, Liger is as good as not installed, unless the variant has it."""
    if variant.liger:
        return nullcontext()
    return patch("evaluators.distillation.module.liger_installed", return_value=False)


def _step_seconds(
    bench: Bench, subject: Subject, plan: Plan, training: Any, *, compiled: bool
) -> list[float]:
    """Return the seconds of the timed steps; fewer if the time ends.

    Raises:
        OutOfTimeError: not even one was timed.
    """
    marks, (student, targets) = Marks(), training
    warm_up = 2 if compiled else 1
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def advance(tokens: int) -> None:
        marks()
        if bench.whole_left < 0 or len(marks.at) > warm_up + _TIMED:
            raise _EnoughError

    with suppress(_EnoughError):
        subject.train(plan, student, targets, _ENDLESS if compiled else warm_up + _TIMED, advance)
    seconds = marks.between()[warm_up:]
    if not seconds:
        raise OutOfTimeError
    return seconds
