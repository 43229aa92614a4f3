"""The seconds that a run takes, foretold from its configuration and the pace of a student on the device."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.importance.layer_scores import sample_blocks
from evaluators.metrics.pace import Pace
from search.settings.config import NESTED, RunConfig
from search.settings.methods import in_rounds, loss_of, phases_of
from search.settings.rates import finding_tokens, tokens_each

#: Value of ``--basis`` by which a trial decides between two bases.
AUTO = "auto"
#: Validations of a short distillation: at its end alone, since each may take as long as its training.
RUNG_VALIDATIONS = 1
#: Validations during a retraining, at equal distances.
RETRAINING_VALIDATIONS = 6


@dataclass(frozen=True)
class MomentsWork:
    """What gathering the moments for repairs takes."""

    tokens: int
    """Of the calibration set that are wanted."""
    passes: float
    """For each token that is heard: passes of the teacher, with the products that are summed up."""

    def read(self, config: RunConfig) -> float:
        """Return the tokens that the teacher could read in the same time."""
        calibration = config.calibration_blocks * config.block
        return self.passes * calibration / max(1, calibration // self.tokens)


@dataclass(frozen=True)
class TaskWork:
    """The tokens that models read to be scored on tasks."""

    candidate: int = 0
    """Of the objectives: read by the teacher, by a candidate at each rung, and by a retrained model."""
    model: int = 0
    """Of the files of examples as a whole: read by the teacher, and by a retrained model."""


@dataclass(frozen=True)
class Work:
    """What the time of a run depends on, besides its configuration and the pace."""

    layer_passes: float
    """Forward passes of the teacher that score its layers, each over the sample that they are scored on."""
    larger: float
    """Arithmetic per token: the teacher's over the mean student's."""
    architectures: int
    """Architectures in the search space."""
    hand_made: int
    """Hand-made baselines."""
    tried: int
    """Students of the trial of bases, if the configuration has one; 0 if there is a single basis."""
    moments: MomentsWork | None = None
    """None if no repair needs moments."""
    tasks: TaskWork = TaskWork()

    def trial_students(self, config: RunConfig) -> int:
        """Return the number of students of the trial of bases; 0 if there is none."""
        return self.tried if config.basis == AUTO else 0

    def bases(self, config: RunConfig) -> int:
        """Return the number of bases of hidden that are tried."""
        return 2 if self.trial_students(config) else 1


@dataclass(frozen=True)
class RunTime:
    """Foretold seconds of a run with one worker, by stage."""

    ranking: float
    """The teacher's correction and targets, the ranking, the range tests, and the trial of bases."""
    search: float
    reserve: float
    """More candidates, where a rung is misleading; otherwise this time is left over."""
    retraining: float

    @property
    def total(self) -> float:
        """Seconds of all stages, without tasks that the harness scores, whose time is not known."""
        return self.ranking + self.search + self.reserve + self.retraining


def foretell(config: RunConfig, work: Work, pace: Pace, read_tokens: int | None = None) -> RunTime:
    """Foretell the seconds of a run.

    Args:
        config: its configuration.
        work: teacher and search space.
        pace: of a typical student on the device.
        read_tokens: tokens that the teacher reads for its targets; by default as if the disk had room.
    """
    read = tokens_read(config, work.hand_made) if read_tokens is None else read_tokens
    ranking = work.larger * (read / pace.read + config.teacher_correction / pace.learnt)
    ranking += ranking_seconds(config, work, pace) + trial_seconds(config, work, pace)
    ranking += finding_seconds(config, work, pace) + work.larger * work.tasks.candidate / pace.read
    models = work.tasks.candidate + work.tasks.model
    latency = pace.latency_seconds if config.measures_latency else 0.0
    return RunTime(
        ranking=ranking,
        search=config.spent_tokens / pace.learnt
        + config.trials * latency
        + _search_passes(config) * (_pass_seconds(config, pace) + work.tasks.candidate / pace.read),
        reserve=config.reserve_tokens / pace.learnt,
        retraining=retraining_tokens(config, work.hand_made) / pace.learnt
        + _retraining_passes(config, work) * _pass_seconds(config, pace)
        + (sum(retrainings(config, work.hand_made)) * models + work.larger * work.tasks.model) / pace.read,
    )


def ranking_seconds(config: RunConfig, work: Work, pace: Pace) -> float:
    """Foretell the ranking of the teacher in every basis that is open, and the moments for repairs."""
    moments = work.moments.read(config) if work.moments else 0.0
    return work.larger * (ranking_tokens(config, work.layer_passes, work.bases(config)) + moments) / pace.read


def ranking_tokens(config: RunConfig, layer_passes: float, bases: int) -> int:
    """Return the tokens of all forward passes that rank the teacher, each through its layers and head.

    Args:
        config: the run.
        layer_passes: see ``Work``.
        bases: number of bases of hidden in which the teacher is ranked.
    """
    return width_tokens(config, layer_passes, bases) + layer_tokens(config, layer_passes)


def width_tokens(config: RunConfig, layer_passes: float, bases: int) -> int:
    """Return the tokens of the passes that score widths and, if in rounds, the layers of students."""
    calibration = config.calibration_blocks * config.block
    if not in_rounds(config):
        return calibration
    phases = config.rounds * len(phases_of(config))
    return bases * (phases * calibration + (phases - 1) * layer_tokens(config, layer_passes))


def layer_tokens(config: RunConfig, layer_passes: float) -> int:
    """Return the tokens of the passes that score layers, counted as passes through the whole teacher."""
    return round(sample_blocks(config.calibration_blocks, config.block) * config.block * layer_passes)


def trial_seconds(config: RunConfig, work: Work, pace: Pace) -> float:
    """Foretell the trial of bases, without the ranking in the second one."""
    latency = pace.latency_seconds if config.measures_latency else 0.0
    each = config.trial_tokens / pace.learnt + RUNG_VALIDATIONS * _pass_seconds(config, pace) + latency
    return work.trial_students(config) * each


def trained_tokens(config: RunConfig, work: Work) -> int:
    """Return the tokens of all trainings of students but those of the range tests."""
    trial = work.trial_students(config) * config.trial_tokens
    return config.spent_tokens + trial + retraining_tokens(config, work.hand_made)


def finding_seconds(config: RunConfig, work: Work, pace: Pace) -> float:
    """Foretell the range tests of the learning rate, each training of which ends with a validation."""
    tokens = finding_tokens(config, work.bases(config), trained_tokens(config, work))
    return tokens / pace.learnt + tokens / tokens_each(config) * _pass_seconds(config, pace)


def validation_seconds(config: RunConfig, work: Work, pace: Pace) -> float:
    """Foretell all validations of search and retraining."""
    passes = _search_passes(config) + _retraining_passes(config, work)
    return passes * _pass_seconds(config, pace)


def retrainings(config: RunConfig, hand_made: int) -> tuple[int, int]:
    """Return the models to retrain in full (promoted, best baseline) and short (others, random weights).

    Args:
        config: the run.
        hand_made: number of hand-made baselines.
    """
    return (config.promote + 1, hand_made) if config.retrain_baselines else (config.promote, 0)


def retraining_tokens(config: RunConfig, hand_made: int) -> int:
    """Return the training tokens of all retrainings."""
    full, short = retrainings(config, hand_made)
    return full * config.retrain_tokens + short * config.short_retrain_tokens


def tokens_read(config: RunConfig, hand_made: int) -> int:
    """Return the tokens that the teacher reads for its targets, if the disk has room for those to be kept."""
    if not loss_of(config).needs_teacher and not config.states:
        return 0
    if config.targets == "live":
        return config.spent_tokens + retraining_tokens(config, hand_made)
    return config.distillation_blocks * config.block


def _pass_seconds(config: RunConfig, pace: Pace) -> float:
    return config.validation_blocks * config.block / pace.read


def _search_passes(config: RunConfig) -> int:
    each = 1 if config.search == NESTED else RUNG_VALIDATIONS
    return config.trials + each * sum(config.rung_candidates)


def _retraining_passes(config: RunConfig, work: Work) -> int:
    """Count the validations of retraining; the written model is measured once more."""
    return sum(retrainings(config, work.hand_made)) * (RETRAINING_VALIDATIONS + 1)
