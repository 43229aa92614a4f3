"""What is compared on a real teacher: each variant differs from the reference in one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluators.importance.method import Aggregate, Depth, Method, Width
from space.cutting.basis import BasisName
from space.enumeration.hand_made import DEPTH, MLP_AND_HEADS, UNIFORM
from studies.bench.cuts import BOTH

#: Students that keep all layers need no order of them; influence costs nothing.
_METHOD = Method(batch=Aggregate.L2, sequence=Aggregate.L2, depth=Depth.INFLUENCE)
_BY_LOSS = Method(batch=Aggregate.L2, sequence=Aggregate.L2, depth=Depth.PERPLEXITY)
#: Layers are scored by the margins of examples of BLiMP.
_BY_TASK = Method(batch=Aggregate.L2, sequence=Aggregate.L2, depth=Depth.BENCHMARK, benchmark="blimp")
_ROWS = Method(batch=Aggregate.L2, sequence=Aggregate.L2, depth=Depth.BLOCK_PERPLEXITY)


@dataclass(frozen=True)
class Variant:
    """One way to make a student of 60% of its teacher, and to train it."""

    name: str
    shape: str = UNIFORM
    method: Method = _METHOD
    repaired: bool = True
    random_weights: bool = False
    """The same architecture, of which nothing is the teacher's."""
    loss: str = "forward-kl"
    draws: int = 0
    """Tokens that are drawn from each prediction of the teacher and stand for it; 0: all of it."""
    states: tuple[str, ...] = ()
    """Intermediate states that are compared besides."""
    through: float = 0.0
    """Share of the teacher's size of a student between: half of the steps are its."""


@dataclass(frozen=True)
class Part:
    """A question, and the variants that answer it; the first is what the others are compared to."""

    question: str
    variants: tuple[Variant, ...]


def _method(**fields: object) -> Method:
    return Method(**{"batch": Aggregate.L2, "sequence": Aggregate.L2, "depth": Depth.INFLUENCE, **fields})  # type: ignore[arg-type]


REFERENCE = Variant("reference")
DEPTH_ONLY = Variant("depth by loss", DEPTH, _BY_LOSS)
PARTS: Mapping[str, Part] = {
    "teaching": Part(
        "Is it the teacher that teaches, and are its weights worth having?",
        (
            REFERENCE,
            Variant("cross-entropy alone", loss="cross-entropy"),
            Variant("KL and cross-entropy", loss="0.5*forward-kl+0.5*cross-entropy"),
            Variant("random weights", random_weights=True),
        ),
    ),
    "shapes": Part(
        "Widths, layers, or both?",
        (
            REFERENCE,
            Variant("MLP and heads", MLP_AND_HEADS),
            DEPTH_ONLY,
            Variant("widths and layers", BOTH, _BY_LOSS),
        ),
    ),
    "bases": Part(
        "In which directions of hidden is it cut best, with the head tied?",
        (
            REFERENCE,
            Variant("weighted basis", method=_method(basis=BasisName.WEIGHTED)),
            Variant("principal basis", method=_method(basis=BasisName.PRINCIPAL)),
        ),
    ),
    "repair": Part(
        "What are least squares worth?",
        (
            REFERENCE,
            Variant("not repaired", repaired=False),
        ),
    ),
    "width": Part(
        "What should widths be ranked by?",
        (
            REFERENCE,
            Variant("Taylor", method=_method(width=Width.TAYLOR)),
            Variant("magnitude", method=_method(width=Width.MAGNITUDE)),
            Variant("random order", method=_method(width=Width.RANDOM)),
        ),
    ),
    "depth": Part(
        "What should layers be ranked by?",
        (
            DEPTH_ONLY,
            Variant("depth by influence", DEPTH),
            Variant("rows of layers by loss", DEPTH, _ROWS),
            Variant("depth by the margin on BLiMP", DEPTH, _BY_TASK),
        ),
    ),
    "aggregation": Part(
        "How do activations become a score?",
        (
            REFERENCE,
            Variant("l2, mean", method=_method(sequence=Aggregate.MEAN)),
            Variant("mean, mean", method=_method(batch=Aggregate.MEAN, sequence=Aggregate.MEAN)),
            Variant("var, l2", method=_method(batch=Aggregate.VAR)),
        ),
    ),
    "targets": Part(
        "Are drawn tokens as good as whole predictions?",
        (
            REFERENCE,
            Variant("12 drawn tokens", draws=12),
            Variant("50 drawn tokens", draws=50),
        ),
    ),
    "states": Part(
        "Do intermediate states help where layers are cut?",
        (
            DEPTH_ONLY,
            Variant("depth by loss, a late state", DEPTH, _BY_LOSS, states=("late",)),
        ),
    ),
    "steps": Part(
        "In one step, or over a student between?",
        (
            REFERENCE,
            Variant("over 80%", through=0.8),
        ),
    ),
}


def every_variant() -> list[Variant]:
    """All variants once, in the order of the parts."""
    return list(dict.fromkeys(one for part in PARTS.values() for one in part.variants))
