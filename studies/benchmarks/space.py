"""How fast architectures are counted and enumerated, and students cut."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, build
from space.counting.budget import Budget
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import extract, student_config
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import map_sorted
from space.enumeration.enumeration import enumerate_space
from space.verification.verification import verified_axis_map
from studies.benchmarks.figure import Figure, in_turns

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
#: 174 million parameters.
MIDDLING = LlamaConfig(
    vocab_size=16_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=64,
)


@dataclass(frozen=True)
class SpaceWork:
    """How much is measured."""

    teacher: LlamaConfig = field(default_factory=lambda: LLAMA_8B)
    """Whose architectures are counted and enumerated."""
    budget: int = 4_000_000_000
    """Parameters that they are enumerated for."""
    counted: int = 1_000_000
    """Architectures counted at once."""
    built: int = 8
    """Architectures that the reference builds to count them."""
    cut: LlamaConfig = field(default_factory=lambda: MIDDLING)
    """The teacher of the students that are cut; all widths lose about a third."""
    repeats: int = 9
    """Each figure is the median of so many."""


def space_suite(work: SpaceWork) -> list[Figure]:
    """Every figure of the suite."""
    axis_map = verified_axis_map(work.teacher)
    return [_counting(axis_map, work), _enumeration(axis_map, work), _extraction(work)]


def _counting(axis_map: AxisMap, work: SpaceWork) -> Figure:
    """Beside a million a second."""
    generator = np.random.default_rng(0)
    sizes = {axis: generator.integers(0, axis_map.teacher[axis] + 1, work.counted) for axis in Axis}
    count = parameter_polynomial(axis_map)
    seconds, _ = in_turns(lambda: count.at(sizes), lambda: None, work.repeats)
    rate = work.counted / seconds
    return Figure("architectures counted, per second, beside a million", rate, 1e6, rate / 1e6, 1.0)


def _enumeration(axis_map: AxisMap, work: SpaceWork) -> Figure:
    """Beside building each member on the meta device to count it, which takes as long for each."""
    budget = Budget(work.budget, 0.02)
    space = enumerate_space(axis_map, budget)
    sample = [space.architectures[row] for row in np.linspace(0, len(space) - 1, work.built).astype(int)]

    def built() -> None:
        for member in sample:
            model = build(student_config(axis_map, member, range(member.layers)))
            assert model.num_parameters() == space.parameters_of(member)

    ours, reference = in_turns(lambda: enumerate_space(axis_map, budget), built, work.repeats)
    reference *= len(space) / len(sample)
    name = f"{len(space)} architectures enumerated, s, beside building each without weights"
    return Figure(name, ours, reference, reference / ours, 1.0)


def _extraction(work: SpaceWork) -> Figure:
    """From a mapped file, beside ``torch.clone`` of the student's own tensors: the same bytes and pieces."""
    axis_map = verified_axis_map(work.cut)
    canonical = _mapped(axis_map)
    ranking = Ranking({Axis.LAYERS: torch.zeros(axis_map.teacher.layers)}, axis_map.teacher.kv_heads, "", "")
    narrow = _narrower(axis_map.teacher)
    student = [p.detach() for p in extract(canonical, axis_map, ranking, narrow).parameters()]
    gigabytes = sum(tensor.nbytes for tensor in student) / 1e9
    ours, reference = in_turns(
        lambda: extract(canonical, axis_map, ranking, narrow),
        lambda: [torch.clone(tensor) for tensor in student],
        work.repeats,
    )
    name = f"{gigabytes:.3g} GB of student cut, GB/s, beside torch.clone"
    return Figure(name, gigabytes / ours, gigabytes / reference, reference / ours, 0.5)


def _mapped(axis_map: AxisMap) -> Mapping[str, Tensor]:
    """Random weights of a teacher in a file, as a run has those that it cuts from."""
    weights = {
        tensor.name: torch.rand([dimension.length for dimension in tensor.dimensions])
        for tensor in axis_map.tensors
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sorted.safetensors"
        save_file(weights, path, metadata={"fingerprint": "random"})
        mapped = map_sorted(path, "random")
    assert mapped is not None, "it was written just now"
    return mapped


def _narrower(teacher: Architecture) -> Architecture:
    """All widths cut by about a third."""

    def third(size: int, step: int) -> int:
        return max(step, 2 * size // 3 // step * step)

    kv_heads = third(teacher.kv_heads, 1)
    group = teacher.heads // teacher.kv_heads
    heads, hidden = kv_heads * group, third(teacher.hidden, kv_heads * group)
    return replace(teacher, hidden=hidden, mlp=third(teacher.mlp, 8), heads=heads, kv_heads=kv_heads)
