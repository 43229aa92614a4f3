"""Students cut from a model by any ranking, repaired or not; rankings and moments are made once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.layer_scores import Judge
from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget
from space.counting.counting import parameter_polynomial
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import Moments
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import baselines
from space.enumeration.search_space import SearchSpace
from space.verification.verification import verified_axis_map

#: The name of a student of which both widths and layers are cut.
BOTH = "both"
#: Share of the layers that it keeps.
_LAYERS = 0.85
_TOLERANCE = 0.02


class Cuts:
    """Cuts the hand-made students of a model.

    Args:
        model: in evaluation mode.
        calibration: (N, T) token ids.
        parameters: of the students, within 2%.
        judge: a task that layers may be scored by.
    """

    def __init__(
        self, model: PreTrainedModel, calibration: Tensor, parameters: int, judge: Judge | None = None
    ) -> None:
        self.model, self.calibration, self.parameters, self.judge = model, calibration, parameters, judge
        self._rankings: dict[Method, Ranking] = {}
        self._moments: Moments | None = None

    def cut(self, method: Method, shape: str, *, repaired: bool = True) -> PreTrainedModel:
        """Return a student straight after cutting.

        Args:
            method: what units and layers are ranked by, and in which basis of hidden.
            shape: ``BOTH``, or the name of a baseline.
            repaired: whether least squares repair it.
        """
        axis_map = verified_axis_map(self.model.config, method.basis)
        architecture, ranking = self.architectures(axis_map)[shape], self._ranking(method, axis_map)
        repair = self._repair(axis_map, ranking) if repaired else Repair()
        canonical = sort_by_importance(saved_tensors(self.model, axis_map), axis_map, ranking)
        return extract(canonical, axis_map, ranking, architecture, repair=repair)

    def architectures(self, axis_map: AxisMap) -> Mapping[str, Architecture]:
        """Return the hand-made architectures by name."""
        space = enumerate_space(axis_map, Budget(self.parameters, _TOLERANCE))
        return {**baselines(space, axis_map.teacher), BOTH: even_at(space, axis_map.teacher)}

    def _ranking(self, method: Method, axis_map: AxisMap) -> Ranking:
        if method not in self._rankings:
            with torch.random.fork_rng(devices=[]):
                judge = self.judge if method.by_task else None
                self._rankings[method] = rank(
                    self.model, axis_map, self.calibration, "study", method=method, judge=judge
                )
        return self._rankings[method]

    def _repair(self, axis_map: AxisMap, ranking: Ranking) -> Repair:
        if self._moments is None:  # with those of the stream, which serve every basis
            turned = verified_axis_map(self.model.config, BasisName.WEIGHTED)
            self._moments = gather_moments(self.model, turned, self.calibration, "study")
        return Repair(least_squares=True, moments=self._moments.sorted_by(axis_map, ranking))


def even_at(space: SearchSpace, teacher: Architecture, layers: float = _LAYERS) -> Architecture:
    """Return the architecture with about this share of the layers whose widths shrink most evenly."""
    depths = np.unique(space.column(Axis.LAYERS))
    depth = int(depths[np.abs(depths - layers * teacher.layers).argmin()])
    shares = np.log([space.column(axis) / teacher[axis] for axis in (Axis.HIDDEN, Axis.MLP, Axis.HEADS)])
    unevenness = np.round(shares.max(0) - shares.min(0), 9)
    order = np.lexsort((-space.column(Axis.KV_HEADS), unevenness, space.column(Axis.LAYERS) != depth))
    return space.architectures[int(order[0])]


def share_of(model: PreTrainedModel, share: float) -> int:
    """Return a share of a model's parameters."""
    axis_map = verified_axis_map(model.config)
    return round(share * parameter_polynomial(axis_map).of(axis_map.teacher))
