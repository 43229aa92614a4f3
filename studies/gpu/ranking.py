"""What ranking a teacher takes: the pass that scores widths, moments, and the perplexity without a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance.layer_passes import DepthSetting, depends_on_states_alone
from evaluators.importance.layer_removal import by_loss
from evaluators.importance.layer_scores import layer_sample
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import batches, rank_in_bases
from search.settings.methods import method_of
from space.cutting.basis import BasisName
from space.cutting.extraction import student_map
from space.cutting.moment_sizes import moment_bytes
from studies.benchmarks.distil_models import device
from studies.gpu.bench import Bench, seconds_of
from studies.gpu.subject import Subject, Subjects


def measure_ranking(bench: Bench, subjects: Subjects) -> None:
    """Measure each on the first shape."""

    def subject() -> Subject:
        return subjects.of(bench.work.shapes[0])

    blocks, layers = bench.work.ranking_blocks, bench.work.layers
    bench.measure(f"widths on {blocks} samples", lambda: _widths(bench, subject()))
    bench.measure(f"moments of {layers} layers", lambda: _moments(bench, subject()))
    bench.measure(f"perplexity without each of {layers} layers", lambda: _perplexity(bench, subject()))


def _widths(bench: Bench, subject: Subject) -> dict[str, Any]:
    """Rank all widths in one pass, beside a bare forward pass over the same text."""
    model, text = subject.teacher, subject.text(bench.work.ranking_blocks)
    keys = {BasisName.COORDINATE: ""}
    method = method_of(subject.resolved.config)
    with subject.residence.on_device():
        _read(model, text[:1])  # the first pass loads kernels
        bare = seconds_of(lambda: _read(model, text))
        bench.tick()
        ranked = seconds_of(
            lambda: rank_in_bases(model, subject.axis_map, text, keys, bench.tick, method=method)
        )
    return {"tokens": text.numel(), "seconds": ranked, "forward_pass_s": bare, "ratio": ranked / bare}


def _moments(bench: Bench, subject: Subject) -> dict[str, Any]:
    """Gather the moments of a teacher with its first layers alone; all of them would fill the device."""
    text, axis_map = subject.text(bench.work.ranking_blocks), subject.axis_map
    few = replace(axis_map.teacher, layers=min(bench.work.layers, axis_map.teacher.layers))
    model, cut = subject.student(few), student_map(axis_map, few, range(few.layers))
    bfloat16 = subject.resolved.config.dtype == "bfloat16"
    seconds = seconds_of(lambda: gather_moments(model, cut, text, "", bench.tick, bfloat16=bfloat16))
    sizes = {"moments_gb": moment_bytes(cut) / 1e9, "of_all_layers_gb": moment_bytes(axis_map) / 1e9}
    return {"tokens": text.numel(), "seconds": seconds, **sizes}


def _perplexity(bench: Bench, subject: Subject) -> dict[str, Any]:
    """Compute the loss without some layers, spread over the depth, on the sample for ranking layers."""
    model, axis_map = subject.teacher, subject.axis_map
    text = layer_sample(subject.text(bench.work.ranking_blocks))
    number, depth = bench.work.layers, axis_map.teacher.layers
    layers = sorted({depth * place // number for place in range(number)})
    with subject.residence.on_device():
        reuse = depends_on_states_alone(model, axis_map, text)
        setting = DepthSetting(model, axis_map, batches(text), reuse=reuse, advance=bench.tick)
        seconds = seconds_of(lambda: _without(setting, layers))
    return {"tokens": text.numel(), "seconds": seconds, "layers": layers, "states_reused": reuse}


@torch.no_grad()
def _without(setting: DepthSetting, layers: list[int]) -> None:
    for passes in setting.passes():
        cost = by_loss(passes)
        for layer in layers:
            cost(passes.without(layer, layer + 1))


@torch.no_grad()
def _read(model: PreTrainedModel, text: Tensor) -> None:
    for batch in batches(text):
        final_states(model, batch.to(device(), torch.long))
