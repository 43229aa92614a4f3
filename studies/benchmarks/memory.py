"""The ledger of memory beside what the stages of a run take: each in a process of its own, at its height.

On the host the height is that of the resident memory, on a GPU that of the allocated memory. The allocator of
glibc keeps what is freed. So that only what is in use counts, it is told to give back every block of 64 kB
and more (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``); a run without these settings may take more.
Libraries load parts of themselves at first use, so each stage runs on a tiny model first, which is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.batch import FormName
from search.settings.flags import Flags
from search.settings.placement import STAYS
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.settings.run_sizes import RunSizes
from search.settings.stage_memory import StageMemory
from search.settings.targets_plan import TargetsPlan
from studies.benchmarks.distil_models import device
from studies.benchmarks.distil_process import in_process
from studies.benchmarks.figure import Figure
from studies.benchmarks.memory_stages import measured_peak

#: How much less and more than measured may be foretold.
_LEAST, _MOST = 0.9, 1.15
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
#: Parts that a process has before the stage begins.
_BEFORE = ("process", "text", "workspace")


@dataclass(frozen=True)
class MemoryShape:
    """A teacher of random weights, and how much text its stages read at once."""

    name: str
    teacher: PretrainedConfig
    block: int
    """T, tokens of a block."""
    blocks: int
    """Of an optimiser step, of the calibration and of the validation."""


def _llama(**sizes: int | bool) -> LlamaConfig:
    return LlamaConfig(architectures=["LlamaForCausalLM"], max_position_embeddings=1024, **sizes)  # type: ignore[arg-type]


def shapes() -> tuple[MemoryShape, ...]:
    """From 20 to 220 million parameters: tied and untied, eager and fused attention."""
    small = _llama(
        vocab_size=16384,
        hidden_size=448,
        intermediate_size=1216,
        num_hidden_layers=6,
        num_attention_heads=7,
        num_key_value_heads=7,
        tie_word_embeddings=True,
    )
    middle = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=32768,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=10,
        num_attention_heads=10,
        num_key_value_heads=5,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
    )
    large = _llama(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=17,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    return (
        MemoryShape("20M, tied", small, 128, 4),
        MemoryShape("86M, untied", middle, 512, 2),
        MemoryShape("217M, untied", large, 512, 2),
    )


@dataclass(frozen=True)
class MemoryWork:
    """How much is measured."""

    shapes: tuple[MemoryShape, ...] = field(default_factory=shapes)
    stages: tuple[str, ...] = ()
    """Names of stages; all by default."""


def memory_suite(work: MemoryWork) -> list[Figure]:
    """A figure for each stage of each shape."""
    found = []
    for shape in work.shapes:
        with TemporaryDirectory() as folder:
            resolved = resolved_run(shape, Path(folder))
            kept = TargetsPlan(FormName.HIDDEN, resolved.config.distillation_blocks)
            memory = StageMemory(RunSizes(resolved, kept))
            for needs in memory.of(STAYS, OptimizerName.ADAMW):
                if work.stages and needs.stage not in work.stages:
                    continue
                parts = needs.host if device().type == "cpu" else needs.device
                foretold = sum(size for name, size in parts.items() if name not in _BEFORE)
                architecture = memory.sizes.largest[1]
                with _returning_allocator():
                    peak = in_process(measured_peak, resolved, architecture, needs.stage, Path(folder))
                name = f"{shape.name}: {needs.stage}, foretold MB beside measured"
                found.append(Figure(name, foretold / 1e6, peak / 1e6, foretold / peak, _LEAST, most=_MOST))
    return found


def resolved_run(shape: MemoryShape, folder: Path) -> Resolved:
    """Resolve a run of 60% of a teacher of which there is a config alone, with every stage.

    Its precision is what a run takes on this device.
    """
    shape.teacher.save_pretrained(folder / "teacher")
    flags = Flags(
        budget="60%",
        model=(str(folder / "teacher"),),
        device=str(device()),
        basis="coordinate",
        repair=("least-squares",),
        correct_teacher="1M",
        out=folder,
    )
    return resolve(flags).with_config(
        block=shape.block,
        batch_blocks=shape.blocks,
        calibration_blocks=shape.blocks,
        validation_blocks=shape.blocks,
        distillation_blocks=shape.blocks,
    )


@contextmanager
def _returning_allocator() -> Iterator[None]:
    """Within the context, processes that are started return what they free to the system."""
    before = {name: os.environ.get(name) for name in _ALLOCATOR}
    os.environ.update(_ALLOCATOR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
