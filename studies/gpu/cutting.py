"""What cutting a student takes, beside copying the same bytes: from the host, and on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from search.settings.costs import typical_architecture
from space.axes.axis_map import student_name
from space.cutting.extraction import layers_kept
from studies.benchmarks.distil_models import device
from studies.gpu.bench import Bench, median_seconds
from studies.gpu.subject import Subject, Subjects


def measure_cutting(bench: Bench, subjects: Subjects) -> None:
    """Measure both on the first shape."""

    def subject() -> Subject:
        return subjects.of(bench.work.shapes[0])

    bench.measure("host to device", lambda: _from_host(subject()))
    bench.measure("on the device", lambda: _on_device(subject()))


def _from_host(subject: Subject) -> dict[str, Any]:
    """Cut a student from weights on the host; whole tensors of the kept layers go to the device."""
    architecture = typical_architecture(subject.resolved.space)
    kept = layers_kept(subject.axis_map, subject.ranking, architecture)
    read = [
        subject.weights[tensor.name]
        for tensor in subject.axis_map.tensors
        if student_name(tensor, subject.axis_map, kept) is not None
    ]

    def copy() -> None:
        for tensor in read:
            tensor.to(device())

    return _beside(read, median_seconds(lambda: subject.student(architecture)), median_seconds(copy))


def _on_device(subject: Subject) -> dict[str, Any]:
    """Cut a student from weights on the device, beside copies of the student's own tensors."""
    architecture = typical_architecture(subject.resolved.space)
    with subject.residence.on_device():
        cut = median_seconds(lambda: subject.student(architecture))
        tensors = [one.detach() for one in subject.student(architecture).parameters()]
        copied = median_seconds(lambda: [torch.clone(tensor) for tensor in tensors])
    return _beside(tensors, cut, copied)


def _beside(tensors: list[Tensor], cut: float, copied: float) -> dict[str, Any]:
    size = sum(tensor.nbytes for tensor in tensors) / 1e9
    rates = {"gb_per_s": size / cut, "copy_gb_per_s": size / copied}
    return {"gb": size, "seconds": cut, "copy_s": copied, "ratio": copied / cut, **rates}
