"""What the study of distillation compares, each way by a name."""

from __future__ import annotations

from dataclasses import dataclass

STEPS, SEEDS = 48, (0, 1, 2)
#: Of the rule's peak rate. The first seed decides which of them a loss is compared at.
RATES = (0.5, 1.0, 2.0)
HIGHEST = 8.0
RULE = (1.0,)


@dataclass(frozen=True)
class Variant:
    """One way to train one student."""

    study: str
    name: str
    student: str = "width"
    """``width`` or ``depth``, cut from the teacher; or ``random``, the first of these from random weights."""
    loss: str = "forward-kl"
    temperature: float = 1.0
    states: tuple[str, ...] = ()
    by: str = "cosine"
    draws: int = 0
    """Of next tokens, in place of all."""
    as_many_bytes_as: int = 0
    """The largest few in the bytes of so many draws."""
    rates: tuple[float, ...] = RULE
    equal_flops: bool = False
    """As many steps as the FLOPs of distillation from a live teacher pay for."""


_LOSSES = (
    "forward-kl",
    "reverse-kl",
    "jensen-shannon",
    "mse",
    "cosine",
    "cross-entropy",
    "cross-entropy+forward-kl",
    "cross-entropy+reverse-kl",
    "cross-entropy+mse",
    "cross-entropy+cosine",
)
LOSSES = tuple(Variant("loss", name, loss=name, rates=RATES) for name in _LOSSES)
TEMPERATURES = tuple(Variant("temperature", f"τ = {t:g}", temperature=t) for t in (1.0, 0.1, 0.5, 3.0))
_DRAWS = (12, 50, 200)
FEW = (
    Variant("few", "every logit"),
    *(Variant("few", f"N = {n} drawn", draws=n) for n in _DRAWS),
    *(Variant("few", f"largest, bytes of N = {n}", as_many_bytes_as=n) for n in _DRAWS),
)
_BOTH = ("late", "embedding")
STATES = (
    Variant("states, width", "logits"),
    Variant("states, width", "late block, embedding", states=_BOTH),
    Variant("states, depth", "logits", "depth"),
    Variant("states, depth", "late block", "depth", states=("late",)),
    Variant("states, depth", "late block, embedding", "depth", states=_BOTH),
    Variant("states, depth", "late block, embedding, MSE", "depth", states=_BOTH, by="mse"),
    Variant("states, depth", "late attention", "depth", states=("attention",)),
    Variant("states, depth", "wrong block", "depth", states=("wrong",)),
)
STARTS = (
    Variant("start", "pruned, distilled", rates=RATES),
    Variant("start", "pruned, cross-entropy", loss="cross-entropy", rates=RATES),
    Variant("start", "pruned, cross-entropy, equal FLOPs", loss="cross-entropy", equal_flops=True),
    Variant("start", "random, distilled", "random", rates=RATES),
    Variant("start", "random, cross-entropy", "random", loss="cross-entropy", rates=RATES),
    Variant("start", "random, cross-entropy, equal FLOPs", "random", loss="cross-entropy", equal_flops=True),
)
VARIANTS = (*LOSSES, *STATES, *STARTS, *TEMPERATURES, *FEW)
#: What the others of a study are compared to.
REFERENCES = {
    "loss": "forward-kl",
    "temperature": "τ = 1",
    "few": "every logit",
    "states, width": "logits",
    "states, depth": "logits",
    "start": "pruned, distilled",
}
#: What the paper reports of its own students, loss in nats per token (arXiv 2407.14679, tables 15, 17 and 1).
PAPER = {
    ("loss", "forward-kl"): 2.107,
    ("loss", "cross-entropy+forward-kl"): 2.117,
    ("loss", "cross-entropy+cosine"): 2.134,
    ("loss", "cross-entropy+reverse-kl"): 2.140,
    ("loss", "cross-entropy+mse"): 2.144,
    ("states, depth", "logits"): 2.155,
    ("states, depth", "late block"): 2.145,
    ("states, depth", "late block, embedding"): 2.141,
    ("states, depth", "wrong block"): 2.240,
    ("start", "pruned, distilled"): 2.062,
    ("start", "random, distilled"): 3.953,
}
