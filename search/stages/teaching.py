"""Whose targets a run's students learn: the teacher's that they are cut from, or another model's.

In a family the teacher of a later run is itself a student; the model that the family began with may teach
all.
"""

from __future__ import annotations

import torch

from evaluators.huggingface.final_states import check_head, vocabulary
from evaluators.teacher import Teacher, load_teacher
from search.settings.config import RunConfig
from search.settings.distilling import check_states, loss_of
from search.settings.precision import weights_dtype
from space.input_error import InputError


def teaching_model(config: RunConfig, teacher: Teacher) -> Teacher:
    """The model whose targets are learnt; the teacher itself unless the run names another and asks it.

    Args:
        config: of the run.
        teacher: that students are cut from, loaded.

    Raises:
        InputError: the other one cannot be loaded, has another vocabulary, or cannot be asked.
    """
    if not config.taught_by or not (loss_of(config).needs_teacher or config.states):
        return teacher
    found = load_teacher(
        config.taught_by,
        revision=config.taught_by_revision or None,
        device=torch.device(config.device),
        dtype=weights_dtype(config),
        trust_remote_code=config.trust_remote_code,
    )
    _check_vocabulary(config, teacher, found)
    check_head(found.model)
    check_states(config, found.model)
    return found


def _check_vocabulary(config: RunConfig, teacher: Teacher, teaching: Teacher) -> None:
    own, other = vocabulary(teacher.model), vocabulary(teaching.model)
    if own != other:
        raise _another_vocabulary(config, f"they have {other:,} and {own:,} tokens")
    if teacher.tokenizer.get_vocab() != teaching.tokenizer.get_vocab():
        raise _another_vocabulary(config, "their tokenizers number tokens differently")


def _another_vocabulary(config: RunConfig, why: str) -> InputError:
    return InputError(
        "Whoever teaches a student has to have its vocabulary",
        f"{config.taught_by} was to teach what is cut from {config.teacher}, and {why}",
        "Take --taught-by previous",
    )
