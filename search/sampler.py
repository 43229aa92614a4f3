"""Optuna's samplers on the enumerated space: each proposal is the nearest architecture not yet tried.

A sampler of Optuna's proposes sizes; most of them do not lie near the budget, and some repeat. Here
every proposal is moved to the nearest architecture of the space that no trial has yet, so that no
trial is wasted and what Optuna records is what was tried.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from space.architecture import Architecture, Axis
from space.search_space import AXES, SearchSpace

#: Trials before a model-based sampler begins to model.
START_UP = 10
#: One proposal in so many is drawn from the whole space, whatever the sampler says.
_RANDOM_EVERY = 4
#: Where Optuna's GP sampler notes what it proposed, so that other processes keep away from it.
_NOTE = "gp:relative_params:0"


def make_sampler(kind: str, seed: int) -> BaseSampler:
    """Optuna's sampler of a kind: tpe, gp, nsga2 or random."""
    if kind == "tpe":
        return TPESampler(multivariate=True, n_startup_trials=START_UP, seed=seed)
    if kind == "gp":
        return GPSampler(n_startup_trials=START_UP, seed=seed)
    if kind == "nsga2":
        return NSGAIISampler(population_size=START_UP, seed=seed)
    assert kind == "random", f"no sampler is called {kind}"
    return RandomSampler(seed=seed)


def distributions(space: SearchSpace) -> dict[str, IntDistribution]:
    """One whole-number parameter for each free axis."""
    found = {}
    for axis in space.free_axes:
        values = space.values(axis)
        step = math.gcd(*(value - values[0] for value in values[1:])) if len(values) > 1 else 1
        found[axis.value] = IntDistribution(values[0], values[-1], step=step)
    return found


def architecture_of(params: dict[str, Any], space: SearchSpace) -> Architecture:
    """The architecture that a trial's parameters stand for."""
    return space.architectures[_row(params, space)]


def params_of(architecture: Architecture, space: SearchSpace) -> dict[str, int]:
    """A trial's parameters for an architecture."""
    return {axis.value: architecture[axis] for axis in space.free_axes}


def _row(params: dict[str, Any], space: SearchSpace) -> int:
    return space.row([int(params[axis.value]) for axis in space.free_axes])


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters; of a queued one all of them, even if it was cut off while they were settled."""
    params: dict[str, Any] = trial.system_attrs.get("fixed_params") or trial.params
    return params


class SpaceSampler(BaseSampler):
    """A sampler of Optuna's, confined to the architectures of a space, each proposed once.

    Args:
        inner: proposes sizes.
        space: what may be proposed.
        guide: the study that ``inner`` learns from; None: the one that is asked.
        seed: of the draws from the whole space.
    """

    def __init__(self, inner: BaseSampler, space: SearchSpace, guide: optuna.Study | None, seed: int) -> None:
        self.inner, self.space, self.guide, self.seed = inner, space, guide, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The whole space from the first trial on."""
        return {
            name: distribution
            for name, distribution in distributions(self.space).items()
            if not distribution.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sizes of an architecture that no other trial of the study has."""
        untried = self._untried(study, trial)
        assert len(untried), "more trials were asked for than there are architectures"
        generator = np.random.default_rng((self.seed, trial.number))
        proposal: dict[str, Any] = {}
        if trial.number % _RANDOM_EVERY:
            # A trial that was cut off has a note already, and would be kept away from itself.
            study._storage.set_trial_system_attr(trial._trial_id, _NOTE, "")
            proposal = self.inner.sample_relative(self.guide or study, trial, search_space)
        if proposal.keys() != search_space.keys():
            row = untried[generator.integers(len(untried))]
        else:
            row = untried[nearest(proposal, self.space.table[untried], search_space)]
        return params_of(self.space.architectures[int(row)], self.space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: all parameters are sampled together."""
        raise AssertionError(f"{param_name} was asked for alone")

    def _untried(self, study: optuna.Study, trial: FrozenTrial) -> NDArray[np.intp]:
        """The rows of the space that no other trial has."""
        untried = np.ones(len(self.space), dtype=bool)
        for other in study.get_trials(deepcopy=False):
            params = known_params(other)
            if other.number != trial.number and len(params) == len(self.space.free_axes):
                untried[_row(params, self.space)] = False
        return np.flatnonzero(untried)


def nearest(
    proposal: dict[str, Any], among: NDArray[np.int64], search_space: dict[str, BaseDistribution]
) -> int:
    """The row whose sizes are nearest to a proposal, each axis scaled to its range.

    Args:
        proposal: a size for each axis of ``search_space``.
        among: (n, axes) rows of a space's table.
        search_space: the axes that are sampled, with their ranges.
    """
    names = list(search_space)
    ranges = np.array([_range(search_space[name]) for name in names])
    sizes = among[:, [AXES.index(Axis(name)) for name in names]]
    wanted = np.array([proposal[name] for name in names])
    return int((((sizes - wanted) / ranges) ** 2).sum(1).argmin())


def _range(distribution: BaseDistribution) -> float:
    assert isinstance(distribution, IntDistribution)
    return float(distribution.high - distribution.low)
