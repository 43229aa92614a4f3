"""A resolved run: its configuration, its search space, and what is known before the teacher is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from evaluators.importance.layer_cost import forward_passes
from evaluators.metrics.pace import Pace
from search.settings.config import RunConfig
from search.settings.costs import Costs, mean_matrices, tried_architectures
from search.settings.methods import method_of
from search.settings.moments_plan import MomentsPlan, moments_plan, moments_work, needs_moments
from search.settings.placement import STAYS, Placement
from search.settings.rates import finding_tokens, rate_in_words
from search.settings.run_time import (
    AUTO,
    MomentsWork,
    Work,
    ranking_tokens,
    retraining_tokens,
    retrainings,
    trained_tokens,
)
from search.settings.task_objectives import task_work
from search.settings.teachers import AvailableTeacher
from search.settings.time_budget import AMOUNTS
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.enumeration.hand_made import baselines
from space.enumeration.limits import Limits, read_limits
from space.enumeration.search_space import SearchSpace


@dataclass(frozen=True)
class Resolved:
    """The configuration of a run and its search space."""

    config: RunConfig
    axis_map: AxisMap
    space: SearchSpace
    teacher_parameters: int
    basis: BasisName
    """Basis of the hidden axis in ``axis_map`` and ``space``."""
    whole: SearchSpace
    """All architectures within the budget, before the bounds are applied."""
    costs: Costs
    """Computes the costs that are known before the teacher is loaded."""
    tries: tuple[str, ...] = ()
    """Values of ``--try``."""
    turned: Resolved | None = None
    """The same run in the rotated basis, if a trial decides between the two bases."""
    passed_over: tuple[AvailableTeacher, ...] = ()
    """Teachers that the user named and that are not used."""
    teaching_map: AxisMap | None = None
    """Axis map of the model that supplies the targets, if that is not the teacher."""
    placement: Placement = STAYS
    """Where weights lie and how students train in the memory that there is."""
    device_memory: int | None = None
    """Bytes of the device that the run may take, if the user said so."""
    pace: Pace | None = None
    """The pace that the amounts follow from, if they follow from hours."""
    given: frozenset[str] = frozenset()
    """Names of the flags by which the user fixed amounts of training."""

    @property
    def teaching(self) -> AxisMap:
        """Axis map of the model that supplies the targets."""
        return self.teaching_map or self.axis_map

    def with_config(self, teaching_map: AxisMap | None = None, **fields: Any) -> Resolved:
        """Replace fields of the configuration, and the model that supplies the targets, in every basis."""
        turned = self.turned.with_config(teaching_map, **fields) if self.turned else None
        return replace(self, config=replace(self.config, **fields), teaching_map=teaching_map, turned=turned)

    @property
    def limits(self) -> Limits:
        """The user's limits on the sizes (``--keep``, ``--sizes``)."""
        return read_limits(self.config.keep, self.config.sizes)

    def by_hand(self) -> list[Architecture]:
        """Return the architectures of ``--try``, chosen by what is known before the teacher is loaded.

        Raises:
            InputError: one lies outside the budget or the bounds.
        """
        return tried_architectures(self.tries, self.costs, self.space, self.limits, self.config.upper_bounds)

    @property
    def retrainings(self) -> tuple[int, int]:
        """Models to retrain in full (promoted, best baseline) and short (other baselines, random weights)."""
        return retrainings(self.config, self.hand_made)

    @property
    def retraining_tokens(self) -> int:
        """Training tokens of all retrainings."""
        return retraining_tokens(self.config, self.hand_made)

    @property
    def hand_made(self) -> int:
        """The number of hand-made baselines."""
        return len(baselines(self.space, self.axis_map.teacher))

    @property
    def compared_in_bases(self) -> dict[str, Architecture]:
        """The baselines that a trial of bases distils in each: those that cut hidden; all if none does.

        With the whole of hidden, a student computes the same in every basis.
        """
        found = baselines(self.space, self.axis_map.teacher)
        whole = self.axis_map.teacher.hidden
        return {origin: one for origin, one in found.items() if one.hidden < whole} or found

    @property
    def work(self) -> Work:
        """What the time of the run depends on, besides configuration and pace."""
        teacher, mean = mean_matrices(self.axis_map, self.space)
        tried = 2 * len(self.compared_in_bases) if self.turned else 0
        passes = forward_passes(self.axis_map, method_of(self.config))
        config, moments = self.config, self._moments_work
        tasks = task_work(config.objectives, config.benchmarks, config.task_samples)
        return Work(passes, teacher / mean, len(self.space), self.hand_made, tried, moments, tasks)

    @property
    def moments(self) -> MomentsPlan:
        """How moments are gathered, for all bases at once."""
        return moments_plan(self.config, (self.turned or self).axis_map, self.device_memory)

    @property
    def _moments_work(self) -> MomentsWork | None:
        if not needs_moments(self.config):
            return None
        return moments_work(self.moments, self.config, by_layers=self.placement.layer_by_layer)

    @property
    def ranking_tokens(self) -> int:
        """Tokens of all forward passes that rank the teacher, each through its layers and head."""
        return ranking_tokens(self.config, self.work.layer_passes, 1 if self.turned is None else 2)

    @property
    def finding_tokens(self) -> int:
        """Expected tokens of the range tests of the learning rate; 0 if there are none."""
        config, work = self.config, self.work
        return finding_tokens(config, work.bases(config), trained_tokens(config, work))

    @property
    def rate_in_words(self) -> str:
        """How the peak learning rate is set."""
        config, work = self.config, self.work
        return rate_in_words(config, work.bases(config), trained_tokens(config, work))

    def with_amounts(self, config: RunConfig) -> Resolved:
        """Take the amounts of another configuration, which may leave out the trial of bases."""
        amounts = {name: getattr(config, name) for name in (*AMOUNTS, "hours")}
        found = self.with_config(self.teaching_map, **amounts)
        return found if config.basis == AUTO else replace(found, turned=None)
