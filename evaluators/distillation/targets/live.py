"""Targets from the teacher's final states, cached or computed live, and from text without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StatePlace, states_at
from evaluators.distillation.targets.batch import Batch, Dense, FormName, rows
from evaluators.huggingface.final_states import final_states, head_dtype, logits_of
from evaluators.huggingface.residence import Residence


class Hidden:
    """The form that stores final states in bfloat16.

    Args:
        teacher: the model whose head is applied to them.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher

    @property
    def description(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.HIDDEN.value}

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``."""
        return {"final": final.to(torch.bfloat16).cpu()}

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Return the final states, (n, D) bfloat16."""
        return (torch.cat([record["final"] for record in records]),)

    def predictions(self, *targets: Tensor) -> Dense:
        """See ``Form``."""
        return teacher_logits(self.teacher, targets[0])


@torch.no_grad()
def teacher_logits(teacher: PreTrainedModel, final: Tensor) -> Dense:
    """Return the logits for (n, D) final states, which are first cast to the dtype of the head."""
    return Dense(logits_of(teacher, final.to(head_dtype(teacher))).float())


class LiveTargets:
    """Targets from a teacher that runs beside the student: no disk, nearly twice the work."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokens: Tensor,
        places: Sequence[StatePlace] = (),
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        residence: Residence | None = None,
        learnt: Tensor | None = None,
    ) -> None:
        """Keep the teacher and the tokens; the forward passes come with the batches.

        Args:
            teacher: in evaluation mode.
            tokens: (N, T) token ids.
            places: intermediate states to return with each batch.
            precision: the context in which the teacher runs, such as ``Accelerator.autocast``.
            residence: brings the teacher to its device; by default it stays where it is.
            learnt: (N, T) bool, True at each token whose next one is to be learnt; None: all are.
        """
        self.teacher, self.tokens, self.learnt, self.places = teacher, tokens, learnt, tuple(places)
        self.precision, self.residence = precision, residence or Residence(teacher)

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    @property
    def head_of(self) -> PreTrainedModel:
        """The model whose head turns final states into logits."""
        return self.teacher

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``: every step needs a live teacher whole, so it stays while a student trains."""
        return self.residence.on_device()

    @torch.no_grad()
    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        tokens = self.tokens[numbers].to(self.residence.device, torch.long)
        with self.on_device(), self.precision(), states_at(self.teacher, self.places) as states:
            final = final_states(self.teacher, tokens.clamp(min=0))
        return Batch(tokens, (final,), dict(states), rows(self.learnt, numbers, tokens.device))

    def predictions(self, *targets: Tensor) -> Dense:
        """See ``Targets``."""
        return teacher_logits(self.teacher, targets[0])


class TextTargets:
    """Tokens without a teacher, for training by cross-entropy alone."""

    def __init__(self, tokens: Tensor, device: torch.device, learnt: Tensor | None = None) -> None:
        """Take (N, T) token ids, the student's device, and (N, T) which next tokens are learnt, or all."""
        self.tokens, self.device, self.learnt = tokens, device, learnt

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``."""
        return nullcontext()

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        tokens = self.tokens[numbers].to(self.device, torch.long)
        return Batch(tokens, learnt=rows(self.learnt, numbers, self.device))

    def predictions(self, *targets: Tensor) -> None:
        """Return None: there is no teacher."""
