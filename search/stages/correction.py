"""Teacher correction (brief training on the distillation set) as a stage of a run; done once and saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from evaluators.corpus.blocks import fingerprint
from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import Checkpointing, DistillationResult, DivergenceError, TrainingMonitor
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.schedule import Schedule
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import Teacher
from evaluators.teacher.correction import correct_teacher, correction_rate, fingerprint_of, read_corrected
from search.settings.config import RunConfig
from search.settings.methods import accelerator_of, weights_dtype
from search.settings.placement import STAYS, Placement
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from search.training.process_group import run_processes
from search.training.training import Correct, TakeCorrected
from space.input_error import InputError

_VALIDATIONS = 4


@dataclass(frozen=True)
class Correction:
    """The outcome of a teacher's correction."""

    key: str
    """Fingerprint of the inputs: teacher, text and settings."""
    fingerprint: str
    """Fingerprint of the corrected teacher."""
    tokens: int
    seconds: float
    peak_rate: float
    loss_before: float
    """Nats per token on the validation blocks."""
    loss_after: float
    curve: list[tuple[int, float]]
    """(tokens, validation loss)."""
    note: str | None
    """What happened during training, if anything."""

    @property
    def sentence(self) -> str:
        """The outcome in words, for the terminal."""
        text = f"corrected the teacher on {self.tokens:,} tokens: loss {self.loss_before:.4f} before, "
        rose = self.loss_after > self.loss_before
        worse = "; it reads the validation text worse than it did" if rose else ""
        note = f"; {self.note}" if self.note else ""
        return f"{text}{self.loss_after:.4f} after{worse}{note}"

    @classmethod
    def load(cls, path: Path, key: str) -> Correction | None:
        """Load the correction saved at ``path``; None if there is none or its inputs were others."""
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        fields["curve"] = [(tokens, loss) for tokens, loss in fields["curve"]]
        found = cls(**fields)
        return found if found.key == key else None


def correct_if_asked(
    config: RunConfig,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    placement: Placement = STAYS,
) -> tuple[Teacher, Correction | None]:
    """Return the teacher of the run: as loaded, or trained on the distillation set if configured.

    The correction of an earlier process is reused if its written weights are unchanged; otherwise the
    teacher is trained again, from the checkpoint if there is one.

    Raises:
        InputError: the training does not fit into memory, or its loss diverges.
        OSError: the disk is full.
    """
    if not config.teacher_correction:
        return teacher, None
    with console.stage("teacher correction"):
        key = _key(config, teacher, corpus)
        found = Correction.load(directory.correction, key)
        if found is not None and _written_fingerprint(config, directory) == found.fingerprint:
            console.forecast.skip("correct", config.teacher_correction)
            _checkpointing(directory, key).remove()  # in case that process stopped before it removed them
            console.say(f"reusing the corrected teacher in {directory.corrected_teacher}")
            run_processes().send_command(TakeCorrected())
            return load_corrected(config, teacher, directory), found
        return _correct(config, teacher, corpus, directory, console, key, placement)


def _correct(
    config: RunConfig,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    key: str,
    placement: Placement,
) -> tuple[Teacher, Correction]:
    rate = correction_rate(teacher.model.num_parameters())
    with teacher.on_device():
        before = validation_loss(teacher.model, corpus.validation, corpus.validation_learnt)
    with console.work("correcting the teacher", "correct", config.teacher_correction) as advance:
        run_processes().send_command(Correct())
        with run_processes().in_step():
            outcome = train_teacher(config, teacher, corpus, directory, advance, placement)
    run_processes().send_command(TakeCorrected())
    corrected = load_corrected(config, teacher, directory)
    with corrected.on_device():
        after = validation_loss(corrected.model, corpus.validation, corpus.validation_learnt)
    curve = [(seen, loss) for seen, loss in outcome.curve if math.isfinite(loss)]
    correction = Correction(
        key,
        corrected.fingerprint,
        outcome.tokens,
        outcome.seconds,
        rate,
        before,
        after,
        curve,
        outcome.note,
    )
    atomic_write(directory.correction, json.dumps(asdict(correction)))
    _checkpointing(directory, key).remove()
    console.say(correction.sentence)
    return corrected, correction


def train_teacher(
    config: RunConfig,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    advance: Callable[[int], None],
    placement: Placement = STAYS,
) -> DistillationResult:
    """Train a teacher on the distillation set, in all processes of a run; the main one writes it.

    Args:
        config: configuration of the run.
        teacher: the teacher as loaded; do not use it afterwards.
        corpus: the full corpus.
        directory: run directory.
        advance: called with the tokens of each step.
        placement: of the run; its micro-batch and recomputation are those of the training.

    Raises:
        InputError: the training does not fit into memory, or its loss diverges.
        OSError: the disk is full.
    """
    accelerator, rate = accelerator_of(config), correction_rate(teacher.model.num_parameters())

    def validate(model: PreTrainedModel) -> float:
        with accelerator.autocast():
            return validation_loss(model, corpus.validation, corpus.validation_learnt)

    schedule = Schedule(
        tokens=config.teacher_correction, blocks=config.batch_blocks, block=corpus.block, peak_rate=rate
    )
    watch = TrainingMonitor(validate=validate, times=_VALIDATIONS, advance=advance)
    saving = _checkpointing(directory, _key(config, teacher, corpus))
    path = directory.corrected_teacher
    try:
        optimizer = OptimizerName(config.optimizer)
        optimizer = OptimizerName(config.optimizer)
        with teacher.on_device():
            return correct_teacher(
                teacher,
                corpus.distillation,
                schedule,
                accelerator,
                path,
                watch,
                saving,
                optimizer,
                learnt=corpus.distillation_learnt,
                micro_batch=placement.micro_batch,
                recompute=placement.recompute,
            )
    except DivergenceError as error:
        raise InputError(
            "The correction of a teacher has to converge", str(error), "Leave --correct-teacher out"
        ) from None


def load_corrected(config: RunConfig, teacher: Teacher, directory: RunDirectory) -> Teacher:
    """Load the corrected teacher from the run directory; it replaces ``teacher``."""
    path, dtype = directory.corrected_teacher, weights_dtype(config)
    return read_corrected(teacher, path, dtype, config.trust_remote_code)


def _checkpointing(directory: RunDirectory, key: str) -> Checkpointing:
    path = directory.correction_checkpoint
    return Checkpointing(path=path, key=key, best=path.with_suffix(".best"))


def _written_fingerprint(config: RunConfig, directory: RunDirectory) -> str | None:
    return fingerprint_of(directory.corrected_teacher, config.trust_remote_code)


def _key(config: RunConfig, teacher: Teacher, corpus: Corpus) -> str:
    """Return a fingerprint of everything that determines the corrected weights."""
    settings = (config.teacher_correction, config.batch_blocks, config.dtype, config.device, config.optimizer)
    learnt = [] if corpus.distillation_learnt is None else [corpus.distillation_learnt]
    return fingerprint("correction", teacher.fingerprint, corpus.distillation, *learnt, *settings)
