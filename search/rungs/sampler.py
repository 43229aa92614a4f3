"""Samplers on the enumerated space: each proposal is an architecture not yet tried.

Optuna's samplers propose sizes, most of which are not near the budget, and some of which repeat. Here every
proposal moves to the nearest untried architecture of the space. So no trial is wasted, and Optuna records
the sizes that were really tried. Before there are trials to learn from, and now and then later, candidates
are spread evenly over the space instead.

The sizes near a budget form a thin shell in the box of all sizes. A low-discrepancy sequence that fills the
box, once projected onto the shell, covers it less evenly than random draws do. So each candidate is chosen
to minimise the mean distance from the space's architectures to the nearest tried one (greedy k-medians).

A higher rung separates good candidates from bad ones better than rung 0 does, but has none that is over a
bound, since those are not promoted. A sampler that learns from it also sees rung 0's candidates over a bound.
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
#: How many random candidates are compared, and by the distances of how many random architectures.
_CANDIDATES, _SAMPLE = 64, 500


def farthest_untried(
    sizes: NDArray[np.int64], tried: NDArray[np.bool_], generator: np.random.Generator
) -> int:
    """Return the row of the untried architecture that best covers the space together with those tried.

    Args:
        sizes: (n, axes) sizes of all architectures; distances scale each axis by its range.
        tried: (n,) whether each was tried; at least one was not.
        generator: draws the candidates to compare.
    """
    places = sizes / np.maximum(np.ptp(sizes, axis=0), 1)
    candidates = _random_subset(np.flatnonzero(~tried), _CANDIDATES, generator)
    sample = places[_random_subset(np.arange(len(places)), _SAMPLE, generator)]
    distances = _distances(sample, places[candidates])
    if tried.any():
        distances = np.minimum(distances, _distances(sample, places[tried]).min(1, keepdims=True))
    return int(candidates[distances.mean(0).argmin()])


def _random_subset(rows: Rows, most: int, generator: np.random.Generator) -> Rows:
    return generator.choice(rows, min(most, len(rows)), replace=False)


def _distances(these: Reals, those: Reals) -> Reals:
    """Return (n, m) Euclidean distances."""
    squares = ((these[:, None] - those[None]) ** 2).sum(-1)
    distances: Reals = np.sqrt(squares)
    return distances


def with_infeasible(guide: optuna.Study, rung_0: optuna.Study) -> optuna.Study:
    """Return a view of a study for samplers that adds the trials of rung 0 that are over a bound.

    These get the worst values of the study, since their own were measured at another rung.

    Args:
        guide: a higher rung's study, with at least one complete trial.
        rung_0: rung 0's study.
    """
    trials = guide.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    worst = np.max([trial.values for trial in trials], axis=0).tolist()
    over = []
    for trial in rung_0.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if any(share > 0 for share in trial.constraints.values()):
            over.append(copy.copy(trial))
            over[-1].values = worst
    return cast(optuna.Study, _ExtendedStudy(guide, over))


class _ExtendedStudy:
    """A study with additional complete trials; everything else is delegated to the study."""

    def __init__(self, study: optuna.Study, additional: Sequence[FrozenTrial]) -> None:
        self._study, self._additional = study, additional

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in these states, the study's own first."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Sequence[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        own = self._study.get_trials(deepcopy, tuple(states) if states is not None else None)
        return own + list(self._additional) if states is None or TrialState.COMPLETE in states else own


#: Trials before a model-based sampler begins to model.
START_UP = 10
#: One proposal in this many is chosen to cover the space, whatever the sampler.
_SPREAD_EVERY = 4
#: The system attribute in which Optuna's GP sampler stores its proposal, for other processes to avoid.
_GP_PROPOSAL = "gp:relative_params:0"


@dataclass(frozen=True)
class SamplerKind:
    """A way to choose candidates."""

    make: Callable[[int], BaseSampler] | None = None
    """Makes Optuna's sampler from a seed; None: candidates are only spread evenly or drawn at random."""
    evenly: bool = True
    """Whether candidates without a sampler's proposal are spread evenly; otherwise they are random."""
    from_rung_0: bool = False
    """Whether the sampler learns from rung 0 even where a higher rung has enough trials."""


#: By name, as ``--sampler`` takes them.
KINDS = {
    "tpe": SamplerKind(lambda seed: TPESampler(multivariate=True, n_startup_trials=START_UP, seed=seed)),
    "gp": SamplerKind(lambda seed: GPSampler(n_startup_trials=START_UP, seed=seed)),
    "nsga2": SamplerKind(lambda seed: NSGAIISampler(population_size=START_UP, seed=seed), from_rung_0=True),
    "qmc": SamplerKind(),
    "random": SamplerKind(evenly=False),
}


def distributions(space: SearchSpace, others: Iterable[Mapping[str, int]] = ()) -> dict[str, IntDistribution]:
    """Return an integer parameter for each free axis.

    Args:
        space: its sizes lie within the parameters' ranges.
        others: sizes of further architectures that the ranges have to include.
    """
    found = {}
    extra = list(others)
    for axis in space.free_axes:
        values = sorted({*space.values(axis), *(one[axis] for one in extra if axis in one)})
        step = math.gcd(*(value - values[0] for value in values[1:])) if len(values) > 1 else 1
        found[axis.value] = IntDistribution(values[0], values[-1], step=step)
    return found


def architecture_of(params: dict[str, Any], space: SearchSpace) -> Architecture:
    """Return the architecture that a trial's parameters describe."""
    return space.architectures[_row(params, space)]


def params_of(architecture: Architecture, space: SearchSpace) -> dict[str, int]:
    """Return a trial's parameters for an architecture."""
    return {axis.value: architecture[axis] for axis in space.free_axes}


def _row(params: dict[str, Any], space: SearchSpace) -> int:
    return space.row([int(params[axis.value]) for axis in space.free_axes])


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters; of a queued trial all of them, even if it was interrupted in ``begin``."""
    params: dict[str, Any] = trial.system_attrs.get("fixed_params") or trial.params
    return params


class SpaceSampler(BaseSampler):
    """Proposes the architectures of a space, each once.

    Args:
        kind: a name in ``KINDS``.
        space: the architectures to propose from.
        guide: the study that Optuna's sampler learns from; None for the study that asks.
        seed: the run's.
        number: the trial's, so that a resumed run does not repeat the random draws of its start.
    """

    def __init__(
        self, kind: str, space: SearchSpace, guide: optuna.Study | None, seed: int, number: int
    ) -> None:
        # Optuna seeds NumPy's RandomState, which takes at most 32 bits.
        make = KINDS[kind].make
        self.inner = make((seed * 100_003 + number) % 2**32) if make else None
        self.evenly = KINDS[kind].evenly
        self.space, self.guide, self.seed = space, guide, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return every free axis with more than one size, from the first trial on."""
        by_hand = [known_params(other) for other in (self.guide or study).get_trials(deepcopy=False)]
        return {
            name: distribution
            for name, distribution in distributions(self.space, by_hand).items()
            if not distribution.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the sizes of an architecture that no other trial of the study has."""
        untried = self._untried(study, trial)
        assert untried.any(), "more trials were asked for than there are architectures"
        proposal: dict[str, Any] = {}
        if self.inner is not None and trial.number % _SPREAD_EVERY:
            # An interrupted trial has stored its proposal already, and the sampler would avoid it.
            study._storage.set_trial_system_attr(trial._trial_id, _GP_PROPOSAL, "")
            proposal = self.inner.sample_relative(self.guide or study, trial, search_space)
        if proposal.keys() == search_space.keys():
            rows = np.flatnonzero(untried)
            row = rows[nearest(proposal, self.space.table[rows], search_space)]
        else:
            row = self._row_without_proposal(untried, np.random.default_rng((self.seed, trial.number)))
        return params_of(self.space.architectures[int(row)], self.space)

    def _row_without_proposal(self, untried: NDArray[np.bool_], generator: np.random.Generator) -> int:
        if self.evenly:
            return farthest_untried(self.space.free_table, ~untried, generator)
        return int(generator.choice(np.flatnonzero(untried)))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: all parameters are sampled together."""
        raise AssertionError(f"{param_name} was asked for alone")

    def _untried(self, study: optuna.Study, trial: FrozenTrial) -> NDArray[np.bool_]:
        """Return (n,): whether no other trial, finished, running or queued, has this row of the space."""
        untried = np.ones(len(self.space), dtype=bool)
        for other in study.get_trials(deepcopy=False):
            params = known_params(other)
            if other.number != trial.number and len(params) == len(self.space.free_axes):
                with suppress(KeyError):  # sizes that a user asked for need not be in the space
                    untried[_row(params, self.space)] = False
        return untried


def nearest(
    proposal: dict[str, Any], among: NDArray[np.int64], search_space: dict[str, BaseDistribution]
) -> int:
    """Return the index of the row whose sizes are nearest to a proposal, each axis scaled by its range.

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
