"""What the user said about distillation, as a loss, as states, and as a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.places import states_at
from evaluators.distillation.states import States, chosen
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.form import FormName
from evaluators.distillation.targets.live import TextTargets
from search.settings.config import RunConfig


def loss_of(config: RunConfig) -> Loss:
    """On the logits.

    Raises:
        InputError: it is none.
    """
    return Loss.parse(config.loss, config.temperature)


def states_asked(names: Sequence[str]) -> tuple[str, ...]:
    """Each state once; ``auto`` and ``none`` stand for no states."""
    return tuple(name for name in dict.fromkeys(names) if name not in ("auto", "none"))


def states_of(config: RunConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> States | None:
    """Which states of the two are compared; None without any."""
    return chosen(config.states, _layers(student), _layers(teacher))


def check_states(config: RunConfig, teacher: PreTrainedModel) -> None:
    """Refuse states that a class keeps where nobody can listen.

    Raises:
        InputError: naming the class, and what it lacks.
    """
    states = states_of(config, teacher, teacher)
    if states is not None:
        with states_at(teacher, states.of_teacher):
            pass


def targets_told(targets: Targets) -> dict[str, Any]:
    """Their form, tokens and bytes on disk, as the summary has them."""
    form, size = FormName.LIVE.value, 0
    if isinstance(targets, CachedTargets):
        form = str(targets.form.about["form"])
        size = targets.records.size
    elif isinstance(targets, TextTargets):
        form = "text"
    return {"form": form, "tokens": targets.tokens.numel(), "bytes": size}


def _layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)
