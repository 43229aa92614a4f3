"""Distillation losses on the logits: divergences between teacher and student, and weighted sums of them.

Every term has one value per token. The caller averages over tokens, since it knows how many a step has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, nn

from evaluators.distillation.targets.batch import PADDING, Predictions, Sparse
from space.input_error import InputError


class Term(StrEnum):
    """One term of a loss."""

    FORWARD_KL = "forward-kl"
    REVERSE_KL = "reverse-kl"
    JENSEN_SHANNON = "jensen-shannon"
    MSE = "mse"
    COSINE = "cosine"
    CROSS_ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Loss:
    """A weighted sum of terms on the logits.

    The temperature τ divides the logits of both sides in the three divergences, which are multiplied by τ²,
    so that their gradients keep the same scale at any τ (Hinton et al., arXiv 1503.02531, section 2).

    Attributes:
        terms: the weight of each term.
        temperature: τ.
    """

    terms: Mapping[Term, float] = field(default_factory=lambda: {Term.FORWARD_KL: 1.0})
    temperature: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(term is not Term.CROSS_ENTROPY for term in self.terms)

    @property
    def needs_every_logit(self) -> bool:
        """Whether the loss needs the teacher's full logits instead of a sparse distribution."""
        return bool(self.terms.keys() & _OF_LOGITS.keys())

    def __str__(self) -> str:
        parts = [str(term) if weight == 1 else f"{weight:g}*{term}" for term, weight in self.terms.items()]
        at = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return "+".join(parts) + at

    @classmethod
    def parse(cls, text: str, temperature: float = 1.0) -> Loss:
        """Read ``forward-kl`` or ``0.5*forward-kl+0.5*cross-entropy``.

        Raises:
            InputError: a term is unknown or repeated, or a weight or the temperature is not positive.
        """
        terms: dict[Term, float] = {}
        for part in text.split("+"):
            found = re.fullmatch(r"\s*(?:([0-9.]+(?:e-?[0-9]+)?)\s*\*)?\s*([a-z-]+)\s*", part)
            try:
                assert found
                weight, term = float(found[1] or 1), Term(found[2])
                assert weight > 0
                assert term not in terms
            except (AssertionError, ValueError):
                raise InputError(
                    f"A loss is a sum of terms out of {', '.join(Term)}, each once",
                    f"{text!r} was given",
                    "Write forward-kl, or 0.5*forward-kl+0.5*cross-entropy",
                ) from None
            terms[term] = weight
        if not 0 < temperature < float("inf"):
            raise InputError(
                "The temperature has to be above 0", f"{temperature} was given", "Leave it out: it is 1 then"
            )
        return cls(terms, temperature)

    def of(self, student: Tensor, teacher: Predictions | None, next_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted terms against the teacher, and those against the next token.

        Args:
            student: (n, V) logits.
            teacher: the teacher's predictions for the same tokens.
            next_tokens: (n,) the token after each, ``PADDING`` where there is none.

        Returns:
            Two (n,) tensors, in nats or in the unit of MSE and cosine.
        """
        student = student.float()
        distilled, predicted = student.new_zeros(2, len(student))
        for term, weight in self.terms.items():
            if term is Term.CROSS_ENTROPY:
                predicted = predicted + weight * cross_entropy(student, next_tokens)
            else:
                distilled = distilled + weight * self._of_teacher(term, student, teacher)
        return distilled, predicted

    def _of_teacher(self, term: Term, student: Tensor, teacher: Predictions | None) -> Tensor:
        assert teacher is not None, f"{term} needs a teacher"
        if isinstance(teacher, Sparse):
            assert term is Term.FORWARD_KL, f"{term} needs every logit of the teacher"
            return sparse_kl(student, teacher, self.temperature)
        if term is Term.FORWARD_KL:
            return forward_kl(student, teacher.logits, self.temperature)
        return _OF_LOGITS[term](student, teacher.logits, self.temperature)


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² KL(teacher ‖ student) in nats (arXiv 2407.14679, section 3).

    The forward pass stores the gradient τ (softmax(student / τ) − softmax(teacher / τ)). That saves most of
    the backward pass, and keeps only one (n, V) tensor.

    Args:
        student: (n, V) logits.
        teacher: (n, V) logits, without a gradient.
        temperature: τ.
    """
    divergence = _ForwardKL.apply(_divided(student, temperature), _divided(teacher, temperature))  # type: ignore[no-untyped-call]
    return temperature**2 * cast(Tensor, divergence)


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the (n,) divergences of (n, V) logits."""
        log_student, log_ratio = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        teacher_probabilities = log_ratio.exp()
        divergence: Tensor = torch.linalg.vecdot(teacher_probabilities, log_ratio.sub_(log_student))
        ctx.save_for_backward(log_student.exp_().sub_(teacher_probabilities))
        return divergence

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the student's logits; the teacher has none."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None], None


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature; skip 1, which would cost a pass over all logits, forward and backward."""
    return logits if temperature == 1 else logits / temperature


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² KL(student ‖ teacher) in nats; arguments as in ``forward_kl``."""
    log_student = _divided(student, temperature).log_softmax(dim=-1)
    log_teacher = _divided(teacher, temperature).log_softmax(dim=-1)
    divergence: Tensor = torch.linalg.vecdot(log_student.exp(), log_student - log_teacher)
    return temperature**2 * divergence


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² (KL(teacher ‖ m) + KL(student ‖ m)) / 2 in nats, with the mixture m = (teacher + student) / 2.

    Arguments as in ``forward_kl``.
    """
    log_student = _divided(student, temperature).log_softmax(dim=-1)
    log_teacher = _divided(teacher, temperature).log_softmax(dim=-1)
    log_m = torch.logaddexp(log_student, log_teacher) - math.log(2)
    both = log_teacher.exp() * (log_teacher - log_m) + log_student.exp() * (log_student - log_m)
    return temperature**2 * both.sum(dim=-1) / 2


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) squared difference of the logits, averaged over V; the temperature is ignored."""
    return (student - teacher).square().mean(dim=-1)


def cosine(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) one minus the cosine similarity of the logits; the temperature is ignored."""
    return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)


_OF_LOGITS: dict[Term, Callable[[Tensor, Tensor, float], Tensor]] = {
    Term.REVERSE_KL: reverse_kl,
    Term.JENSEN_SHANNON: jensen_shannon,
    Term.MSE: mse,
    Term.COSINE: cosine,
}


def sparse_kl(student: Tensor, teacher: Sparse, temperature: float = 1.0) -> Tensor:
    """(n,) τ² times the student's cross-entropy on a sparse teacher, minus the teacher's entropy.

    If the tokens were sampled from the teacher's distribution, value and gradient equal those of
    ``forward_kl`` in expectation (Sparse Logit Sampling, arXiv 2503.16870).

    Args:
        student: (n, V) logits.
        teacher: the teacher's sparse distribution at the same temperature.
        temperature: τ.
    """
    student = _divided(student, temperature)
    chosen: Tensor = torch.linalg.vecdot(teacher.weights, student.gather(-1, teacher.ids))
    return temperature**2 * (student.logsumexp(dim=-1) - chosen - teacher.entropy)


def cross_entropy(student: Tensor, next_tokens: Tensor) -> Tensor:
    """(n,) negative log-likelihood of the next token in nats; 0 where there is none.

    Args:
        student: (n, V) logits.
        next_tokens: (n,) token ids, ``PADDING`` where there is none.
    """
    return nn.functional.cross_entropy(student, next_tokens, ignore_index=PADDING, reduction="none")
