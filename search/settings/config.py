"""The complete configuration of a run, resolved from the flags, the teacher and the device.

It is saved as ``config.toml``, from which the run can be repeated. The configuration of a run directory never
changes.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from search.settings.bracket_plan import tokens_spent
from search.settings.objectives import LATENCY, read_bounds

#: The kind of search in which candidates are trained in shared weights.
NESTED = "nested"
#: How many students could be distilled briefly for the tokens of a nested search.
_TRIALS_A_SEARCH = 64


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved configuration of one run."""

    name: str
    """Name of the run, of its directory and of its Optuna studies."""
    teacher: str
    """Directory or hub id of the teacher."""
    revision: str
    """Revision of the teacher on the hub; empty for the newest."""
    phases: tuple[str, ...]
    """Checkpoints of the teacher's training, in training order, if the user named several; the last is the
    teacher. Empty if the teacher was named alone."""
    passed_over: tuple[str, ...]
    """Other models that the user named, which are not cut: too small, or larger than necessary."""
    taught_by: str
    """Directory or hub id of the model that makes the distillation targets; empty for the teacher itself."""
    taught_by_revision: str
    """Revision of that model on the hub; empty for the newest."""
    teacher_correction: int
    """Tokens of the text that the teacher is trained on before it is pruned; 0 for no such training."""
    budget: int
    """Size of the students, in parameters or bytes as ``budget_of`` says."""
    budget_of: str
    """What the budget counts: total, non-embedding, active, weights or kv-cache."""
    budget_dtype: str
    """Dtype of the weights or of the KV cache, for a budget in bytes."""
    tolerance: float
    """Largest distance of a student from the budget, as a share of the budget."""
    keep: tuple[str, ...]
    """Axes that keep the teacher's size."""
    sizes: tuple[str, ...]
    """Axes with the sizes that they may have, such as ``hidden=2048..3584``."""
    multiples: str
    """Of what other sizes are multiples: deploy, for what programs that serve models ask, or fine."""
    basis: str
    """Basis of the hidden axis: coordinate, principal or weighted; auto if a trial decides."""
    width_by: str
    """Importance of hidden and of the units inside the layers: activations, taylor, magnitude, random."""
    aggregation: str
    """How activations are aggregated along batch and sequence, such as ``l2,mean``."""
    depth_by: str
    """Importance of layers: the name of a method, or else of a task of lm-evaluation-harness."""
    rounds: int
    """Rounds of scoring and pruning, down to the smallest sizes."""
    rounds_order: str
    """Whether a round prunes widths and layers ``together``, or in turn: ``width-depth``, ``depth-width``."""
    repair: tuple[str, ...]
    """Repairs of students straight after pruning: least-squares, norm-scale, head-residual."""
    data: tuple[str, ...]
    """The texts to distil on: files, hub ids or ``stdlib``, of several each with its share (``A=0.7``)."""
    learn: str
    """What of conversations is learnt: all tokens, or the assistant's answers."""
    block: int
    """Tokens per block."""
    long_block: int
    """Tokens of the longer blocks of the last part of retraining; 0: there is no such part."""
    long_share: float
    """The share of retraining that this part has."""
    calibration_blocks: int
    """Maximum number of blocks in the calibration set."""
    validation_blocks: int
    """Maximum number of blocks in the validation set."""
    distillation_blocks: int
    """Maximum number of blocks in the distillation set; longer training repeats them."""
    objectives: tuple[str, ...]
    """Objectives that the search minimises."""
    least: tuple[str, ...]
    """The least score on tasks that the chosen model may have: ``TASK=SCORE``."""
    bounds: tuple[str, ...]
    """Upper bounds on objectives, in their units, such as ``latency=20.0``."""
    search: str
    """How candidates are trained: each alone, at rungs, or nested, as slices of shared weights."""
    sampler: str
    """Name of the Optuna sampler."""
    trials: int
    """Architectures scored at rung 0."""
    rung_tokens: tuple[int, ...]
    """Training tokens of each candidate at rung 1, 2, …; of a nested search, those of all by then."""
    rung_candidates: tuple[int, ...]
    """Candidates at rung 1, 2, …"""
    search_tokens: int
    """Maximum training tokens of all short distillations together."""
    hours: float
    """Hours of the whole run that the amounts follow from, at the pace of the device; 0 if unused."""
    retrain_tokens: int
    """Training tokens of each retraining in full."""
    promote: int
    """Number of candidates that are retrained."""
    retrain_baselines: bool
    """Whether the hand-made baselines and a model with random weights are retrained as well."""
    batch_blocks: int
    """Blocks per optimiser step."""
    loss: str
    """Distillation loss on the logits: one term, or a weighted sum of terms."""
    temperature: float
    """Softmax temperature of the divergences in the loss."""
    states: tuple[str, ...]
    """Intermediate states that are compared in addition to the logits: late, embedding, attention."""
    targets: str
    """Form of the teacher's targets: hidden, sampled, top-k or live; auto to choose by the free disk."""
    schedule: str
    """Learning-rate schedule: cosine or wsd."""
    rate: str
    """Peak learning rate: auto if it is found, rule for that of the student's size, or a number."""
    benchmarks: tuple[str, ...]
    """Tasks, by name or file, that teacher and retrained models are scored on; those of objectives too."""
    task_samples: int
    """Examples of a task by which candidates, and the teacher without some layers, are scored."""
    storage: str
    """Optuna storage; empty for a journal file in the run directory."""
    seed: int
    """Seed of all random numbers."""
    device: str
    """PyTorch device on which models run."""
    dtype: str
    """Precision of training: float32 or bfloat16."""
    optimizer: str
    """Optimiser of training: adamw or adamw-8bit."""
    keep_towers: bool
    """Whether retrained models are also written with the parts of the teacher that read pictures or sound."""
    trust_remote_code: bool
    """Whether custom code that comes with the model may run."""

    @property
    def rungs(self) -> int:
        """The number of rungs, including rung 0."""
        return 1 + len(self.rung_tokens)

    @property
    def upper_bounds(self) -> dict[str, float]:
        """The upper bound of each bounded objective, in its unit."""
        return read_bounds(self.bounds)

    @property
    def measures_latency(self) -> bool:
        """Whether the latency of every candidate is measured."""
        return LATENCY in self.objectives or LATENCY in self.upper_bounds

    @property
    def short_retrain_tokens(self) -> int:
        """Training tokens of baselines behind the best one, and of the model from random weights."""
        return max(self.retrain_tokens // 4, self.batch_blocks * self.block)

    @property
    def long_blocks(self) -> int:
        """Longer blocks that a retraining in full reads."""
        if not self.long_block:
            return 0
        step = self.batch_blocks * self.block
        return max(1, round(self.long_share * self.retrain_tokens / step)) * (step // self.long_block)

    @property
    def spent_tokens(self) -> int:
        """Training tokens of all planned candidates together."""
        if self.search == NESTED:
            return self.rung_tokens[-1]
        return tokens_spent(self.rung_tokens, self.rung_candidates)

    @property
    def trial_tokens(self) -> int:
        """Training tokens of a student that is distilled alone, to compare bases or rates."""
        if self.search == NESTED:
            return max(1, self.search_tokens // _TRIALS_A_SEARCH)
        return self.rung_tokens[0]

    @property
    def reserve_tokens(self) -> int:
        """Tokens for promotions beyond the plan, where the losses at a rung are misleading."""
        return 0 if self.search == NESTED else max(0, self.search_tokens - self.spent_tokens)

    def differences(self, other: RunConfig) -> list[str]:
        """List the differences from another configuration, in words."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} is {mine[name]!r}, was {others[name]!r}" for name in mine if mine[name] != others[name]
        ]

    def to_toml(self) -> str:
        """Return the content of ``config.toml``."""
        return tomli_w.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Load a configuration that ``to_toml`` wrote.

        Raises:
            ValueError: the file is damaged or was written by another version.
        """
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if table.keys() != {field.name for field in fields(cls)}:
            raise ValueError("other fields than this version's")
        tuples = {name: tuple(value) for name, value in table.items() if isinstance(value, list)}
        return cls(**table | tuples)
