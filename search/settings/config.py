"""What a run will do, to the last number: resolved from the flags, the teacher and the device, and saved.

Whoever reads ``config.toml`` can repeat the run; a run directory never changes its configuration.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from search.settings.bracket_plan import tokens_spent
from search.settings.objectives import LATENCY, read_bounds


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved configuration of one run."""

    name: str
    """Of the run, its directory and its studies."""
    teacher: str
    """Directory or hub id."""
    revision: str
    """On the hub; empty for the newest."""
    phases: tuple[str, ...]
    """All checkpoints of the teacher's training that were named, in its order, the last one the teacher; none
    if it was named alone."""
    passed_over: tuple[str, ...]
    """Other models that were named: teachers at hand that are larger than need be, or too small."""
    taught_by: str
    """The model whose targets are learnt, a directory or hub id; empty for the teacher itself."""
    taught_by_revision: str
    """Its revision on the hub; empty for the newest."""
    teacher_correction: int
    """Tokens that the teacher is trained on before it is used; 0 for none."""
    budget: int
    """Parameters or bytes, as ``budget_of`` says."""
    budget_of: str
    """total, non-embedding, active, weights or kv-cache."""
    budget_dtype: str
    """Of a weight or a cached number, where the budget is memory."""
    tolerance: float
    """Share of the budget."""
    keep: tuple[str, ...]
    """Axes that stay as they are."""
    sizes: tuple[str, ...]
    """Axes with the sizes that they may have, such as ``hidden=2048..3584``."""
    basis: str
    """Of hidden: coordinate, principal or weighted; auto if it is tried out."""
    width_by: str
    """What hidden and the units inside the layers are scored by: activations, taylor, magnitude, random."""
    aggregation: str
    """Of activations along batch and sequence, such as ``l2,mean``."""
    depth_by: str
    """What layers are scored by; a task of the evaluation harness if it is no method's name."""
    rounds: int
    """Of scoring and pruning, down to the smallest sizes."""
    rounds_order: str
    """What a round scores and prunes: ``together``, or ``width-depth`` or ``depth-width`` in turn."""
    repair: tuple[str, ...]
    """Of students after cutting: least-squares, norm-scale, head-residual."""
    data: str
    """Text: a file, a hub id, or ``stdlib``."""
    block: int
    """Tokens a block."""
    calibration_blocks: int
    """At most."""
    validation_blocks: int
    """At most."""
    distillation_blocks: int
    """At most; further training tokens repeat them."""
    objectives: tuple[str, ...]
    """Minimised."""
    bounds: tuple[str, ...]
    """The most that is allowed of an objective, in its unit, such as ``latency=20.0``."""
    sampler: str
    """Optuna's."""
    trials: int
    """Architectures scored at rung 0."""
    rung_tokens: tuple[int, ...]
    """Training tokens of rung 1, 2, …"""
    rung_candidates: tuple[int, ...]
    """Candidates of rung 1, 2, …"""
    search_tokens: int
    """Of all short distillations, at most."""
    search_hours: float
    """That the tokens were made from, at the pace of this device; 0 if they were not."""
    retrain_tokens: int
    """Training tokens of each retraining."""
    promote: int
    """Candidates retrained."""
    retrain_baselines: bool
    """Whether hand-made baselines and random weights are retrained as well."""
    batch_blocks: int
    """Blocks of an optimiser step."""
    loss: str
    """On the logits: a term, or a sum of terms with weights."""
    temperature: float
    """Of the divergences in the loss."""
    states: tuple[str, ...]
    """Intermediate states that are compared besides: late, embedding, attention."""
    targets: str
    """The form of the teacher's targets: hidden, sampled, top-k or live; auto if it follows from the disk."""
    schedule: str
    """Of the learning rate: cosine or wsd."""
    benchmarks: tuple[str, ...]
    """Tasks, by name or by their file, that teacher and retrained models are scored by."""
    storage: str
    """Optuna's; empty for a journal in the run directory."""
    seed: int
    """Of everything random."""
    device: str
    """Where models run."""
    dtype: str
    """Precision of the arithmetic of training: float32 or bfloat16."""
    trust_remote_code: bool
    """Whether code of the model may run."""

    @property
    def rungs(self) -> int:
        """How many rungs there are, rung 0 included."""
        return 1 + len(self.rung_tokens)

    @property
    def upper_bounds(self) -> dict[str, float]:
        """The bounds by objective, in its unit."""
        return read_bounds(self.bounds)

    @property
    def measures_latency(self) -> bool:
        """Whether the latency of every candidate is measured."""
        return LATENCY in self.objectives or LATENCY in self.upper_bounds

    @property
    def reserve_tokens(self) -> int:
        """For candidates that are carried up beyond the plan, where a rung misleads."""
        return max(0, self.search_tokens - tokens_spent(self.rung_tokens, self.rung_candidates))

    def differences(self, other: RunConfig) -> list[str]:
        """Readable differences from another configuration."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} is {mine[name]!r}, was {others[name]!r}" for name in mine if mine[name] != others[name]
        ]

    def to_toml(self) -> str:
        """As ``config.toml`` holds it."""
        return tomli_w.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Read what ``to_toml`` gave.

        Raises:
            ValueError: the file is torn or of another version.
        """
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if table.keys() != {field.name for field in fields(cls)}:
            raise ValueError("other fields than this version's")
        tuples = {name: tuple(value) for name, value in table.items() if isinstance(value, list)}
        return cls(**table | tuples)
