"""The synthetic problem as the search asks for it, and what the best possible answer to it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evaluators.distillation.training import Advance
from evaluators.metrics.synthetic import SyntheticProblem
from search.rungs.bracket import pareto_front
from search.rungs.evaluation import Evaluation
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from space.axes.architecture import Architecture
from space.axes.polynomial import Polynomial
from space.enumeration.search_space import AXES, SearchSpace


@dataclass(frozen=True)
class SyntheticEvaluator:
    """Judges candidates by formulas."""

    problem: SyntheticProblem
    tokens: tuple[int, ...]
    """Of each rung, rung 0 with none first."""

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """See ``Evaluator``; the loss carries the problem's noise."""
        table = np.array([[architecture[axis] for axis in AXES]])
        tokens, noise = self.tokens[rung], self.problem.noise_of(architecture, rung)
        points = [0, tokens // 2, tokens] if rung else [0, tokens]
        losses = [float(self.problem.losses(table, point)[0]) + noise for point in points]
        for before, after in pairwise(points):
            advance(after - before)
        values = {name: float(column[0]) for name, column in self.problem.costs(table).items()}
        curve = list(zip(points, losses, strict=True))[1:] if rung else []
        return Evaluation({**values, "loss": losses[-1]}, tokens, curve)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """There is nothing to let go of."""


def evaluator_of(
    config: RunConfig, teacher: Architecture, count: Polynomial, *, noise: float = 0.0, bias: float = 0.0
) -> SyntheticEvaluator:
    """An evaluator for a run's rungs, at a pace at which they matter.

    Args:
        config: of the run; its seed is that of the noise.
        teacher: whole.
        count: parameters of its students.
        noise: standard deviation of a measured loss, in nats per token.
        bias: how far low rungs mislead, from 0 to 1.
    """
    tokens = (0, *config.rung_tokens)
    problem = SyntheticProblem(
        teacher=teacher, count=count, pace_tokens=tokens[1], noise=noise, bias=bias, seed=config.seed
    )
    return SyntheticEvaluator(problem, tokens)


def true_objectives(problem: SyntheticProblem, space: SearchSpace, config: RunConfig) -> NDArray[np.float64]:
    """(n, objectives) of all architectures of a space after retraining, free of noise."""
    return problem.objectives(space.table, config.retrain_tokens, config.objectives)


def true_front(problem: SyntheticProblem, space: SearchSpace, config: RunConfig) -> list[int]:
    """The rows of the true Pareto front of a space, by the first objective."""
    return pareto_front(true_objectives(problem, space, config).tolist())
