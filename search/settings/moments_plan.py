"""How the moments that repairs are made of are gathered, what they take, and how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from evaluators.importance.moment_passes import LayerGroup, layer_groups
from evaluators.importance.moments import stream_norms
from evaluators.importance.rank import needs_forward_pass
from evaluators.metrics.capacity import capacity_of
from evaluators.metrics.memory import weight_bytes
from evaluators.metrics.pace import product_rate
from search.settings.config import RunConfig
from search.settings.memory_counts import COUNTS
from search.settings.methods import in_rounds, method_of, weights_dtype
from search.settings.run_time import MomentsWork
from search.settings.scale import device_is_here
from space.axes.axis_map import AxisMap
from space.counting.counting import experts_per_token, matrix_polynomial
from space.cutting.basis import BasisName
from space.cutting.moment_sizes import ReadSize
from space.cutting.ridge import halves_are_kept

LEAST_SQUARES, NORM_SCALE, HEAD_RESIDUAL = "least-squares", "norm-scale", "head-residual"
#: Calibration tokens that are heard for each input of the largest system (studies/repairs).
TOKENS_PER_INPUT = 128
#: Share of the device's memory that the sums may take.
_OF_DEVICE = 0.25
#: Bytes that the sums may take where the memory cannot be found out.
_ROOM = 2 * 10**9


def needs_moments(config: RunConfig) -> bool:
    """Whether the repairs of a run need moments."""
    return bool({LEAST_SQUARES, NORM_SCALE} & set(config.repair))


@dataclass(frozen=True)
class MomentSums:
    """The sizes of all moments of a teacher."""

    reads: tuple[ReadSize, ...]
    hidden: int
    norms: int
    """Of a stream that can be rotated; 0 if there is none."""
    chosen: int
    """Experts that a token is sent to; 1 if there are none."""
    calibration: int
    """Tokens of the calibration set."""

    @classmethod
    def of(cls, axis_map: AxisMap, norms: int, calibration: int) -> MomentSums:
        """Return the sizes for a teacher of which so many norms are heard, on so many calibration tokens."""
        chosen = experts_per_token(axis_map) if axis_map.teacher.experts else 1
        return cls(tuple(COUNTS.reads(axis_map)), axis_map.teacher.hidden, norms, chosen, calibration)

    @property
    def file(self) -> int:
        """Bytes on the disk, in float32."""
        return self.of_layers(None) // 2

    @property
    def largest(self) -> int:
        """Bytes of the largest moment of a matrix, in float32."""
        return 4 * max((self._values(size) for size in self.reads), default=0)

    @property
    def halved(self) -> bool:
        """Whether the largest moments are kept for half of the tokens as well."""
        return any(self._values(size) > size.values for size in self.reads)

    @property
    def inputs(self) -> int:
        """Inputs of the largest system."""
        return max((size.inputs for size in self.reads), default=1)

    @property
    def wanted(self) -> int:
        """Calibration tokens that are enough, so that experts, too, read enough."""
        reads = (math.ceil(s.inputs * max(1.0, s.matrices / self.chosen)) for s in self.reads)
        return TOKENS_PER_INPUT * max(reads, default=1)

    @property
    def every(self) -> int:
        """Of so many batches of the calibration set one is heard."""
        return max(1, self.calibration // self.wanted)

    @property
    def tokens(self) -> int:
        """That are heard, about."""
        return self.calibration // self.every

    @property
    def products(self) -> int:
        """Multiplications for each token."""
        inner = sum(min(size.matrices, self.chosen) * size.inputs**2 for size in self.reads)
        return inner + self.norms * self.hidden**2

    def of_layers(self, layers: int | None) -> int:
        """Return the bytes of the sums in float64, of so many layers at most; None: of all."""
        by_layer: dict[int | None, int] = {}
        for size in self.reads:
            by_layer[size.layer] = by_layer.get(size.layer, 0) + self._values(size)
        largest = sorted(by_layer.values(), reverse=True)[: layers or None]
        norms = self.norms if layers is None else min(self.norms, 2 * layers + 1)
        stream = norms * self.hidden**2 * (1 + halves_are_kept(self.tokens, self.hidden, experts=False))
        return 8 * (sum(largest) + stream)

    def _values(self, size: ReadSize) -> int:
        """Return the values of a matrix's moments, with those of half of the tokens where they are few."""
        return size.values * (1 + halves_are_kept(self.tokens, size.inputs, experts=size.matrices > 1))


@dataclass(frozen=True)
class MomentsPlan:
    """How the moments of a run are gathered."""

    sums: MomentSums
    axis_map: AxisMap
    layers: int | None
    """Whose sums are held at once; None: all."""
    beside: bool
    """Whether the ranking's own pass gathers them."""

    @property
    def groups(self) -> list[LayerGroup]:
        """The layers of each pass."""
        return layer_groups(self.axis_map, self.layers)

    @property
    def held(self) -> int:
        """Bytes of the sums that are held at once, in float64."""
        return self.sums.of_layers(self.layers)

    @property
    def passes(self) -> float:
        """Of the teacher over these tokens, beside the ranking's."""
        return 0.0 if self.beside else sum(group.share for group in self.groups)

    def words(self, *, by_layers: bool) -> str:
        """For the plan: on how many tokens, and in how many passes.

        Args:
            by_layers: whether the teacher is read layer by layer from the disk.
        """
        inputs, layers, tokens = self.sums.inputs, self.layers, self.sums.tokens
        scarce = "fewer than" if tokens < inputs else f"{tokens // inputs:,} for each of"
        found = f"moments of {tokens:,} tokens, {scarce} the {inputs:,} inputs of the largest system"
        if self.beside or by_layers:
            return f"{found}, gathered as the teacher is ranked"
        passes = len(self.groups)
        return (
            f"{found}, gathered in {passes} passes of {layers} layers" if layers else f"{found}, in one pass"
        )


def moments_plan(config: RunConfig, axis_map: AxisMap, told: int | None = None) -> MomentsPlan:
    """Plan how the moments of a run are gathered.

    Args:
        config: its configuration.
        axis_map: the teacher's, of a run that tries a rotated basis the one with the stream.
        told: bytes of the device if the user named them.
    """
    sums = MomentSums.of(axis_map, len(stream_norms(axis_map)), config.calibration_blocks * config.block)
    layers = _layers_at_once(sums, axis_map, _room(config, axis_map, told))
    forward = needs_forward_pass(method_of(config), rotated=config.basis != BasisName.COORDINATE)
    return MomentsPlan(sums, axis_map, layers, beside=layers is None and forward and not in_rounds(config))


def _room(config: RunConfig, axis_map: AxisMap, told: int | None) -> float:
    """Return the bytes that the sums may take where the teacher lies."""
    capacity = capacity_of(torch.device(config.device), told)
    there = capacity.host if capacity.shared else capacity.device
    if there is None:
        return _ROOM
    return min(_OF_DEVICE * there, (there - weight_bytes(axis_map, weights_dtype(config))) / 2)


def _layers_at_once(sums: MomentSums, axis_map: AxisMap, room: float) -> int | None:
    if sums.of_layers(None) <= room:
        return None
    return next((n for n in range(axis_map.teacher.layers - 1, 1, -1) if sums.of_layers(n) <= room), 1)


def moments_work(plan: MomentsPlan, config: RunConfig, *, by_layers: bool) -> MomentsWork:
    """Return what gathering moments takes, in tokens that the teacher reads.

    Args:
        plan: how they are gathered.
        config: of the run.
        by_layers: whether the teacher is read layer by layer from the disk, whose pass gathers them.
    """
    matrices = matrix_polynomial(plan.axis_map).of(plan.axis_map.teacher)
    products = plan.sums.products / matrices * _float32_cost(config)
    return MomentsWork(plan.sums.wanted, products + (0.0 if by_layers else plan.passes))


def _float32_cost(config: RunConfig) -> float:
    """Return the time of a product in float32, as sums are made, over that in the precision of the run."""
    if config.dtype == "float32" or not device_is_here(config.device):
        return 1.0
    device = torch.device(config.device)
    return product_rate(device, config.dtype) / product_rate(device, "float32")
