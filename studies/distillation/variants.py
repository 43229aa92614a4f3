"""What the study of distillation compares, each way by a name."""

from __future__ import annotations

from dataclasses import dataclass

STEPS, SEEDS = 48, (0, 1, 2)
#: Of the rule's peak rate. The first seed decides which of them a loss is compared at.
RATES = (0.5, 1.0, 2.0)
RULE = (1.0,)
#: The steps of training on text alone that cost what distillation from a live teacher does.
EQUAL_FLOPS = "equal FLOPs"


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
    steps: int = STEPS
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
    Variant(
        "start", "random, cross-entropy, equal FLOPs", "random", loss="cross-entropy", equal_flops=True
    ),
)
LONGER = tuple(
    Variant("longer", f"{name}", loss=name, steps=4 * STEPS)
    for name in ("forward-kl", "cross-entropy", "cross-entropy+forward-kl")
) + (
    Variant("longer, depth", "logits", "depth", steps=4 * STEPS),
    Variant("longer, depth", "late block, embedding", "depth", states=_BOTH, steps=4 * STEPS),
)
VARIANTS = (*LOSSES, *STATES, *STARTS, *TEMPERATURES, *FEW, *LONGER)
#: What the others of a study are compared to.
REFERENCES = {
    "loss": "forward-kl",
    "temperature": "τ = 1",
    "few": "every logit",
    "states, width": "logits",
    "states, depth": "logits",
    "start": "pruned, distilled",
    "longer": "forward-kl",
    "longer, depth": "logits",
}
