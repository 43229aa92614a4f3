"""What distillation lowers: divergences between teacher and student on the logits, and mixtures of them.

Every term is a value for each token. Means over tokens are taken by the caller, who knows how many there
are in all.
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
    """Terms on the logits with their weights.

    The temperature τ divides the logits of both sides in the three divergences, which are multiplied by τ²,
    so that their gradients are of the same size at any τ (Hinton et al., arXiv 1503.02531, section 2).

    Attributes:
        terms: the weight of each.
        temperature: τ.
    """

    terms: Mapping[Term, float] = field(default_factory=lambda: {Term.FORWARD_KL: 1.0})
    temperature: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked at all."""
        return any(term is not Term.CROSS_ENTROPY for term in self.terms)

    @property
    def needs_every_logit(self) -> bool:
        """Whether a few of the teacher's next tokens are not enough."""
        return bool(self.terms.keys() & _OF_LOGITS.keys())

    def __str__(self) -> str:
        parts = [str(term) if weight == 1 else f"{weight:g}*{term}" for term, weight in self.terms.items()]
        at = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return "+".join(parts) + at

    @classmethod
    def parse(cls, text: str, temperature: float = 1.0) -> Loss:
        """Read ``forward-kl`` or ``0.5*forward-kl+0.5*cross-entropy``.

        Raises:
            InputError: it names no terms, a weight is not positive, or the temperature is not.
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

    def of(self, student: Tensor, answer: Predictions | None, next_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted terms that count where the teacher says something, and where the next token is known.

        Args:
            student: (n, V) logits.
            answer: what the teacher says of the same tokens.
            next_tokens: (n,) the token after each, ``PADDING`` where there is none.

        Returns:
            Twice (n,) in nats, or as MSE and cosine have it.
        """
        student = student.float()
        said, known = student.new_zeros(2, len(student))
        for term, weight in self.terms.items():
            if term is Term.CROSS_ENTROPY:
                known = known + weight * cross_entropy(student, next_tokens)
            else:
                said = said + weight * self._of_teacher(term, student, answer)
        return said, known

    def _of_teacher(self, term: Term, student: Tensor, answer: Predictions | None) -> Tensor:
        assert answer is not None, f"{term} needs a teacher"
        if isinstance(answer, Sparse):
            assert term is Term.FORWARD_KL, f"{term} needs every logit of the teacher"
            return sparse_kl(student, answer, self.temperature)
        if term is Term.FORWARD_KL:
            return forward_kl(student, answer.logits, self.temperature)
        return _OF_LOGITS[term](student, answer.logits, self.temperature)


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² KL(teacher ‖ student) in nats (arXiv 2407.14679, section 3).

    The gradient τ (softmax(student / τ) − softmax(teacher / τ)) is written down in the forward pass, which
    saves the backward pass most of its work and leaves one (n, V) tensor behind.

    Args:
        student: (n, V) logits.
        teacher: (n, V) logits, without a gradient.
        temperature: τ.
    """
    found = _ForwardKL.apply(_divided(student, temperature), _divided(teacher, temperature))  # type: ignore[no-untyped-call]
    return temperature**2 * cast(Tensor, found)


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """(n,) the divergence of (n, V) logits."""
        mine, ratio = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        shares = ratio.exp()
        found: Tensor = torch.linalg.vecdot(shares, ratio.sub_(mine))
        ctx.save_for_backward(mine.exp_().sub_(shares))
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        """Of the student alone."""
        (apart,) = ctx.saved_tensors
        return apart * outer[0][:, None], None


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """By 1 costs as much as by any other number, on all logits, forward and backward."""
    return logits if temperature == 1 else logits / temperature


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² KL(student ‖ teacher) in nats; arguments as in ``forward_kl``."""
    mine = _divided(student, temperature).log_softmax(dim=-1)
    theirs = _divided(teacher, temperature).log_softmax(dim=-1)
    found: Tensor = torch.linalg.vecdot(mine.exp(), mine - theirs)
    return temperature**2 * found


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) τ² times half of KL(teacher ‖ m) + KL(student ‖ m) in nats, m half of both.

    Arguments as in ``forward_kl``.
    """
    mine = _divided(student, temperature).log_softmax(dim=-1)
    theirs = _divided(teacher, temperature).log_softmax(dim=-1)
    middle = torch.logaddexp(mine, theirs) - math.log(2)
    both = theirs.exp() * (theirs - middle) + mine.exp() * (mine - middle)
    return temperature**2 * both.sum(dim=-1) / 2


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) squared difference of the logits, mean over V; the temperature does not matter."""
    return (student - teacher).square().mean(dim=-1)


def cosine(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(n,) one minus the cosine between the logits; the temperature does not matter."""
    return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)


_OF_LOGITS: dict[Term, Callable[[Tensor, Tensor, float], Tensor]] = {
    Term.REVERSE_KL: reverse_kl,
    Term.JENSEN_SHANNON: jensen_shannon,
    Term.MSE: mse,
    Term.COSINE: cosine,
}


def sparse_kl(student: Tensor, answer: Sparse, temperature: float = 1.0) -> Tensor:
    """(n,) τ² times the cross-entropy of the student under a teacher's few next tokens, less its entropy.

    Where the tokens were drawn from the teacher's distribution, its mean, and that of its gradient, are
    those of ``forward_kl`` (Sparse Logit Sampling, arXiv 2503.16870).

    Args:
        student: (n, V) logits.
        answer: of the teacher, at the same temperature.
        temperature: τ.
    """
    student = _divided(student, temperature)
    chosen: Tensor = torch.linalg.vecdot(answer.weights, student.gather(-1, answer.ids))
    return temperature**2 * (student.logsumexp(dim=-1) - chosen - answer.entropy)


def cross_entropy(student: Tensor, next_tokens: Tensor) -> Tensor:
    """(n,) −log of the probability of the next token in nats; 0 where there is none.

    Args:
        student: (n, V) logits.
        next_tokens: (n,) token numbers, ``PADDING`` where there is none.
    """
    return nn.functional.cross_entropy(student, next_tokens, ignore_index=PADDING, reduction="none")
