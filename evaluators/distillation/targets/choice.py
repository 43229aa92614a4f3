"""Which form of the teacher's targets a run is given, from what it costs on the disk and in each step."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.records import OVERHEAD
from evaluators.distillation.targets.sparse import DRAWS, K, bytes_per_id
from space.counting.budget import Measure
from space.counting.budget import format_amount as spoken_amount
from space.input_error import InputError

#: Targets may take this share of the free disk: models and checkpoints are still to come.
_OF_FREE = 0.5
#: Applying the teacher's head again may cost this share of a step of the student's.
_OF_STEP = 0.1
_SPOKEN = {
    FormName.HIDDEN: "hidden states",
    FormName.SAMPLED: "drawn tokens",
    FormName.TOP_K: "most probable tokens",
}


@dataclass(frozen=True, kw_only=True)
class TargetsSetting:
    """What the choice depends on."""

    tokens: int
    """Of the distillation set."""
    block: int
    """Tokens a block."""
    vocabulary: int
    """V."""
    width: int
    """D, how many numbers of a token the teacher's head reads."""
    student: int
    """Weights in the student's matrices, each multiplied once a token."""
    teacher: int
    """The same of the teacher."""
    every_logit: bool
    """Whether the loss compares all logits."""
    states: int = 0
    """Numbers of a token in the teacher's intermediate states, over all places that are compared."""

    def bytes_of(self, form: FormName) -> int:
        """On disk, at most.

        Two bytes for each number of a hidden or intermediate state; of N drawn tokens a number and a count
        each, as if none came twice (of text, about a quarter do not), with a length and an entropy; of the
        K most probable a number and two bytes.
        """
        number = bytes_per_id(self.vocabulary)
        each = {
            FormName.HIDDEN: 2 * self.width,
            FormName.SAMPLED: min(DRAWS, self.vocabulary) * (number + 1) + 5,
            FormName.TOP_K: min(K, self.vocabulary) * (number + 2),
        }
        if form is FormName.LIVE:
            return 0
        return self.tokens * (each[form] + 2 * self.states) + -(-self.tokens // self.block) * OVERHEAD

    def step_share(self, form: FormName) -> float:
        """Arithmetic that the targets add to a step, as a share of the student's 6 P a token."""
        added = {FormName.HIDDEN: 2 * self.width * self.vocabulary, FormName.LIVE: 2 * self.teacher}
        return added.get(form, 0) / (6 * self.student)

    @property
    def sparse_suffices(self) -> bool:
        """Whether a few next tokens of each say all that the loss asks for."""
        return not (self.every_logit or self.states)


def choose_form(wanted: str, setting: TargetsSetting, free: int) -> FormName:
    """The form of the teacher's targets.

    Hidden states where the loss needs what only they hold, or where the teacher's head costs at most a
    tenth of a step: they are exact. Else drawn tokens, which cost no arithmetic, are a fraction of the
    size, and right in the mean; students end at the same loss (studies/distillation). Either only if it
    takes at most half of what is free. Else the teacher runs live, at the price of a forward pass in every
    step.

    Top-k is never chosen: it is biased.

    Args:
        wanted: a form, or ``auto``.
        setting: sizes.
        free: bytes on the disk.

    Raises:
        InputError: the wanted form is not enough for the loss, or does not fit.
    """
    if wanted != "auto":
        return _asked(FormName(wanted), setting, free)
    cheap = setting.step_share(FormName.HIDDEN) <= _OF_STEP
    if (cheap or not setting.sparse_suffices) and fits(FormName.HIDDEN, setting, free):
        return FormName.HIDDEN
    if setting.sparse_suffices and fits(FormName.SAMPLED, setting, free):
        return FormName.SAMPLED
    return FormName.LIVE


def fits(form: FormName, setting: TargetsSetting, free: int) -> bool:
    """Whether a form takes at most half of the free bytes."""
    return setting.bytes_of(form) <= _OF_FREE * free


def form_in_words(form: FormName) -> str:
    """A form that is kept, as people say it."""
    return _SPOKEN[form]


def _asked(form: FormName, setting: TargetsSetting, free: int) -> FormName:
    if form in (FormName.SAMPLED, FormName.TOP_K) and not setting.sparse_suffices:
        raise InputError(
            "A loss on all logits or on intermediate states needs targets that hold them",
            f"--targets {form} holds a few tokens of each distribution",
            "Leave --targets out, or take --loss forward-kl without --states",
        )
    if not fits(form, setting, free):
        raise InputError(
            "The teacher's targets may take half of the free disk",
            f"{setting.tokens:,} tokens as {form_in_words(form)} need {size_text(setting.bytes_of(form))}, "
            f"and {size_text(free)} are free",
            "Make space, name another disk with --out, take fewer tokens, or take --targets live",
        )
    return form


def size_text(number: float) -> str:
    """Bytes, as people say them: 123 MB."""
    text = spoken_amount(number, Measure.WEIGHTS)
    return f"{text[:-2]} {text[-2:]}" if text[-1] == "B" else f"{text} bytes"
