"""How long a run would take on this device, from ten seconds of a student's work there."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.metrics.pace import Pace
from search.settings.pace import pace_of
from search.settings.resolution import Resolved
from search.stages.bases import contestants
from search.stages.retraining import VALIDATIONS as RETRAINING_VALIDATIONS
from search.stages.trial import VALIDATIONS as RUNG_VALIDATIONS
from space.axes.architecture import Axis
from space.counting.counting import matrix_polynomial

#: Forward passes over the calibration set for each basis: activations, moments, and half a pass a layer.
_PASSES = 2.0


@dataclass(frozen=True)
class Hours:
    """Seconds of one worker's, by stage."""

    pace: Pace
    ranking: float
    """The teacher's correction and targets, the ranking, and the trial of the bases."""
    search: float
    """Without what is held back for more candidates."""
    retraining: float

    @property
    def total(self) -> float:
        """Of all stages, in seconds; benchmarks are not known before."""
        return self.ranking + self.search + self.retraining


def hours_of(resolved: Resolved, read_tokens: int) -> Hours:
    """Time a student here, and multiply.

    Args:
        resolved: the run.
        read_tokens: that the teacher reads for its targets.
    """
    config = resolved.config
    pace = pace_of(
        resolved.axis_map, resolved.space, config.device, config.dtype, config.batch_blocks, config.block
    )
    larger = _teacher_beside_student(resolved)
    validation = config.validation_blocks * config.block / pace.read
    latency = pace.latency_seconds if config.measures_latency else 0.0
    tried = contestants(resolved)
    calibration = config.calibration_blocks * config.block * (2 if tried else 1)
    passes = _PASSES + resolved.axis_map.teacher.layers / 2
    ranking = larger * (read_tokens + calibration * passes) / pace.read
    ranking += larger * config.teacher_correction / pace.learnt

    def distilled(tokens: int, validations: int) -> float:
        return tokens / pace.learnt + validations * validation

    ranking += len(tried) * (distilled(config.rung_tokens[0], RUNG_VALIDATIONS) + latency)
    rungs = zip(config.rung_tokens, config.rung_candidates, strict=True)
    search = config.trials * (validation + latency)
    search += sum(number * distilled(tokens, RUNG_VALIDATIONS) for tokens, number in rungs)
    # The model that was written is measured once more.
    one = distilled(config.retrain_tokens, RETRAINING_VALIDATIONS + 1)
    return Hours(pace, ranking, search, resolved.retrainings * one)


def _teacher_beside_student(resolved: Resolved) -> float:
    """How much more arithmetic a token of the teacher takes than one of a student."""
    axis_map, space = resolved.axis_map, resolved.space
    matrices = matrix_polynomial(axis_map)
    students = matrices.at({axis: space.column(axis) for axis in Axis})
    return float(matrices.of(axis_map.teacher) / students.mean())
