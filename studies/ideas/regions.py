"""What a basis for each region of depth could give at most.

A stock class has one stream, hence one basis. Here a teacher of full size keeps its whole stream, and every
norm sees only the best directions of its region's basis. With one region that is just what the student of one
basis computes; with more it flatters, for a student of these bases would also have to pass what it knows
through the few dimensions of every region on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

from torch import Tensor, nn
from transformers import PreTrainedModel

from space.cutting.basis import Basis
from studies.ideas.stream import Statistics, norms_of


def regions(names: Sequence[str], number: int) -> list[Sequence[str]]:
    """So many runs of neighbours, as equal as can be."""
    ends = [len(names) * part // number for part in range(number + 1)]
    return [names[start:end] for start, end in pairwise(ends)]


def region_bases(statistics: Statistics, basis: str, number: int) -> dict[str, Basis]:
    """By the name of a norm's weight the basis of its region.

    Args:
        statistics: of the folded teacher.
        basis: as ``Statistics.basis`` names it.
        number: of regions; as many as norms is the limit.
    """
    names = [norm.name for norm in norms_of(statistics.axis_map)]
    found: dict[str, Basis] = {}
    for region in regions(names, number):
        found |= dict.fromkeys(region, statistics.basis(basis, region))
    return found


@contextmanager
def projected(teacher: PreTrainedModel, bases: Mapping[str, Basis], kept: int) -> Iterator[None]:
    """Within the context every norm sees its basis's best directions alone, and has their gain.

    Args:
        teacher: from ``folded_teacher``.
        bases: by the name of a norm's weight.
        kept: k directions of D.
    """
    with ExitStack() as stack:
        for name, basis in bases.items():
            module = teacher.get_submodule(name.rpartition(".")[0])
            best = basis.rotation[:, :kept]
            gain = basis.gain(kept) * (kept / len(best)) ** 0.5  # the norm divides by the mean over all D
            stack.callback(module.register_forward_pre_hook(_seeing(best @ best.T)).remove)
            stack.callback(module.register_forward_hook(_scaling(gain)).remove)
        yield


def _seeing(projection: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, arguments: (arguments[0] @ projection, *arguments[1:])


def _scaling(gain: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _, __, output: output * gain
