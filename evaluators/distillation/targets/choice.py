"""Choose the form of the teacher's targets from its cost on disk and in each training step."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.records import OVERHEAD
from evaluators.distillation.targets.sparse import DRAWS, K, bytes_per_id
from space.counting.budget import Measure, format_amount
from space.input_error import InputError

#: Share of the free disk that targets may take; models and checkpoints need the rest.
_OF_FREE = 0.5
#: Share of a training step that applying the teacher's head again may cost.
_OF_STEP = 0.1
_IN_WORDS = {
    FormName.HIDDEN: "hidden states",
    FormName.SAMPLED: "drawn tokens",
    FormName.TOP_K: "most probable tokens",
}


@dataclass(frozen=True, kw_only=True)
class TargetsSetting:
    """The sizes that decide the form of the targets."""

    tokens: int
    """Tokens of the distillation set."""
    block: int
    """T, tokens per block."""
    vocabulary: int
    """V, the vocabulary size."""
    width: int
    """D, the width of the states that the teacher's head reads."""
    student: int
    """Weights in the student's matrices, each used in one multiplication per token."""
    teacher: int
    """The same count for the teacher."""
    every_logit: bool
    """Whether the loss needs the teacher's full logits."""
    states: int = 0
    """Values per token in the teacher's intermediate states, over all places that are compared."""

    def bytes_of(self, form: FormName) -> int:
        """Return an upper bound of the size on disk.

        Hidden and intermediate states take two bytes per value. Each of N drawn tokens takes an id and a
        count, as if all were distinct (for text, about a quarter are), plus a length and an entropy. Each of
        the K most probable tokens takes an id and two bytes.
        """
        id_bytes = bytes_per_id(self.vocabulary)
        per_token = {
            FormName.HIDDEN: 2 * self.width,
            FormName.SAMPLED: min(DRAWS, self.vocabulary) * (id_bytes + 1) + 5,
            FormName.TOP_K: min(K, self.vocabulary) * (id_bytes + 2),
        }
        if form is FormName.LIVE:
            return 0
        return self.tokens * (per_token[form] + 2 * self.states) + -(-self.tokens // self.block) * OVERHEAD

    def step_share(self, form: FormName) -> float:
        """Return the FLOPs that the targets add to a step, as a share of the student's 6 P per token."""
        added = {FormName.HIDDEN: 2 * self.width * self.vocabulary, FormName.LIVE: 2 * self.teacher}
        return added.get(form, 0) / (6 * self.student)

    @property
    def sparse_suffices(self) -> bool:
        """Whether a sparse distribution holds all that the loss needs."""
        return not (self.every_logit or self.states)


def choose_form(wanted: str, setting: TargetsSetting, free: int) -> FormName:
    """Choose the form of the teacher's targets.

    Hidden states are exact. They are chosen if the loss needs them, or if the teacher's head costs at most a
    tenth of a step. Otherwise sampled tokens are chosen: they cost no arithmetic, take a fraction of the
    size and are unbiased, and students end at the same loss (studies/distillation). Either has to fit into
    half of the free disk. Otherwise the teacher runs live, at the price of a forward pass in every step.

    Top-k is never chosen: it is biased.

    Args:
        wanted: a form, or ``auto``.
        setting: the sizes of the run.
        free: free bytes on the disk.

    Raises:
        InputError: the wanted form lacks what the loss needs, or does not fit.
    """
    if wanted != "auto":
        return _checked(FormName(wanted), setting, free)
    cheap = setting.step_share(FormName.HIDDEN) <= _OF_STEP
    if (cheap or not setting.sparse_suffices) and fits(FormName.HIDDEN, setting, free):
        return FormName.HIDDEN
    if setting.sparse_suffices and fits(FormName.SAMPLED, setting, free):
        return FormName.SAMPLED
    return FormName.LIVE


def fits(form: FormName, setting: TargetsSetting, free: int) -> bool:
    """Return whether a form takes at most half of the free bytes."""
    return setting.bytes_of(form) <= _OF_FREE * free


def form_in_words(form: FormName) -> str:
    """Return the name of a cached form for messages."""
    return _IN_WORDS[form]


def _checked(form: FormName, setting: TargetsSetting, free: int) -> FormName:
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
    """Format a number of bytes for messages: 123 MB."""
    text = format_amount(number, Measure.WEIGHTS)
    return f"{text[:-2]} {text[-2:]}" if text[-1] == "B" else f"{text} bytes"
