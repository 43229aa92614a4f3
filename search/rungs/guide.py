"""Whom a sampler learns from where something measured is bounded: a rung, and who never came there.

A higher rung tells good candidates from bad ones better than rung 0 does, but none of its candidates is over
a bound: those went no further than rung 0. A sampler that saw it alone would not learn where the bound lies.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState


def with_those_over(guide: optuna.Study, below: optuna.Study) -> optuna.Study:
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
