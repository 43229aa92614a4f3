"""Samplers on the enumerated space: each proposal is an architecture not yet tried.

Near a budget the sizes that fit form a thin shell in the box of all sizes. A low-discrepancy sequence that
fills the box covers the shell less evenly than lots do, once it is moved there. So each candidate is chosen
against those that are there: the one after which the architectures of the space lie nearest to what was
tried, on average (the greedy rule for k medians).

A higher rung tells good candidates from bad ones better than rung 0 does, but none of its candidates is over
a bound: those went no further than rung 0. A sampler that saw it alone would not learn where the bound lies.

A sampler of Optuna's proposes sizes; most of them do not lie near the budget, and some repeat. Here
every proposal is moved to the nearest architecture of the space that no trial has yet, so that no
trial is wasted and what Optuna records is what was tried. Before there is something to learn from, and now
and then after, candidates are spread evenly over the space instead.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from space.axes.architecture import Architecture, Axis
from space.enumeration.search_space import AXES, SearchSpace

Reals = NDArray[np.float64]
Rows = NDArray[np.intp]
#: So many candidates are looked at, and the distances of so many architectures, both drawn by lot.
_CANDIDATES, _SAMPLE = 64, 500


def farthest_untried(
    sizes: NDArray[np.int64], tried: NDArray[np.bool_], generator: np.random.Generator
) -> int:
    """The untried architecture that, once tried, leaves the space nearest to what was tried.

    Args:
        sizes: (n, axes) of all architectures; each axis counts by its range.
        tried: (n,) at least one is not.
        generator: of the lots.
    """
    places = sizes / np.maximum(np.ptp(sizes, axis=0), 1)
    candidates = _some(np.flatnonzero(~tried), _CANDIDATES, generator)
    sample = places[_some(np.arange(len(places)), _SAMPLE, generator)]
    distances = _distances(sample, places[candidates])
    if tried.any():
        distances = np.minimum(distances, _distances(sample, places[tried]).min(1, keepdims=True))
    return int(candidates[distances.mean(0).argmin()])


def _some(rows: Rows, most: int, generator: np.random.Generator) -> Rows:
    return generator.choice(rows, min(most, len(rows)), replace=False)


def _distances(these: Reals, those: Reals) -> Reals:
    """(n, m) Euclidean."""
    squares = ((these[:, None] - those[None]) ** 2).sum(-1)
    distances: Reals = np.sqrt(squares)
    return distances


def with_infeasible(guide: optuna.Study, below: optuna.Study) -> optuna.Study:
    """A study as samplers see it: the trials of one, and those of another that are over a bound.

    The latter have the worst values of the former, as their own were found at another rung.

    Args:
        guide: with at least one trial that is complete.
        below: rung 0.
    """
    trials = guide.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    worst = np.max([trial.values for trial in trials], axis=0).tolist()
    over = []
    for trial in below.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if any(share > 0 for share in trial.constraints.values()):
            over.append(copy.copy(trial))
            over[-1].values = worst
    return cast(optuna.Study, _Seen(guide, over))


class _Seen:
    """A study with further trials that are complete; all else is the study's own."""

    def __init__(self, study: optuna.Study, further: Sequence[FrozenTrial]) -> None:
        self._study, self._further = study, further

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None
    ) -> list[FrozenTrial]:
        """Of these states, the study's own first."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Sequence[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        own = self._study.get_trials(deepcopy, tuple(states) if states is not None else None)
        return own + list(self._further) if states is None or TrialState.COMPLETE in states else own


#: Trials before a model-based sampler begins to model.
START_UP = 10
#: One proposal in so many is chosen to cover the space, whatever the model says.
_SPREAD_EVERY = 4
#: Where Optuna's GP sampler notes what it proposed, so that other processes keep away from it.
_NOTE = "gp:relative_params:0"


@dataclass(frozen=True)
class SamplerKind:
    """A way to choose candidates."""

    make: Callable[[int], BaseSampler] | None = None
    """Optuna's sampler for a seed; None: it learns nothing."""
    evenly: bool = True
    """Whether candidates that no sampler proposes are spread evenly; else they are drawn by lot."""
    from_rung_0: bool = False
    """Whether it learns from rung 0 even where a later one has enough trials."""


#: By name, as ``--sampler`` takes them.
KINDS = {
    "tpe": SamplerKind(lambda seed: TPESampler(multivariate=True, n_startup_trials=START_UP, seed=seed)),
    "gp": SamplerKind(lambda seed: GPSampler(n_startup_trials=START_UP, seed=seed)),
    "nsga2": SamplerKind(lambda seed: NSGAIISampler(population_size=START_UP, seed=seed), from_rung_0=True),
    "qmc": SamplerKind(),
    "random": SamplerKind(evenly=False),
}


def distributions(space: SearchSpace, others: Iterable[Mapping[str, int]] = ()) -> dict[str, IntDistribution]:
    """One whole-number parameter for each free axis.

    Args:
        space: whose sizes are in its range.
        others: sizes of architectures by hand, in the range as well.
    """
    found = {}
    beside = list(others)
    for axis in space.free_axes:
        values = sorted({*space.values(axis), *(one[axis] for one in beside if axis in one)})
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
    """Proposes the architectures of a space, each once.

    Args:
        kind: of ``KINDS``.
        space: what may be proposed.
        guide: the study that Optuna's sampler learns from; None: the one that is asked.
        seed: of the run.
        number: of the trial: a resumed run goes on with other lots than it began with.
    """

    def __init__(
        self, kind: str, space: SearchSpace, guide: optuna.Study | None, seed: int, number: int
    ) -> None:
        # More than 32 bits NumPy's old generator refuses.
        make = KINDS[kind].make
        self.inner = make((seed * 100_003 + number) % 2**32) if make else None
        self.evenly = KINDS[kind].evenly
        self.space, self.guide, self.seed = space, guide, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The whole space from the first trial on."""
        by_hand = [known_params(other) for other in (self.guide or study).get_trials(deepcopy=False)]
        return {
            name: distribution
            for name, distribution in distributions(self.space, by_hand).items()
            if not distribution.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sizes of an architecture that no other trial of the study has."""
        untried = self._untried(study, trial)
        assert untried.any(), "more trials were asked for than there are architectures"
        proposal: dict[str, Any] = {}
        if self.inner is not None and trial.number % _SPREAD_EVERY:
            # A trial that was cut off has a note already, and would be kept away from itself.
            study._storage.set_trial_system_attr(trial._trial_id, _NOTE, "")
            proposal = self.inner.sample_relative(self.guide or study, trial, search_space)
        if proposal.keys() == search_space.keys():
            rows = np.flatnonzero(untried)
            row = rows[nearest(proposal, self.space.table[rows], search_space)]
        else:
            row = self._drawn(untried, np.random.default_rng((self.seed, trial.number)))
        return params_of(self.space.architectures[int(row)], self.space)

    def _drawn(self, untried: NDArray[np.bool_], generator: np.random.Generator) -> int:
        if self.evenly:
            return farthest_untried(self.space.free_table, ~untried, generator)
        return int(generator.choice(np.flatnonzero(untried)))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: all parameters are sampled together."""
        raise AssertionError(f"{param_name} was asked for alone")

    def _untried(self, study: optuna.Study, trial: FrozenTrial) -> NDArray[np.bool_]:
        """(n,) whether no other trial has a row of the space, be it finished, at work or queued."""
        untried = np.ones(len(self.space), dtype=bool)
        for other in study.get_trials(deepcopy=False):
            params = known_params(other)
            if other.number != trial.number and len(params) == len(self.space.free_axes):
                with suppress(KeyError):  # sizes by hand, which no row has
                    untried[_row(params, self.space)] = False
        return untried


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
