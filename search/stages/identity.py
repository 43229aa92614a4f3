"""The identity check: the uncut student has to be the teacher.

A student of all of the teacher's sizes passes through every stage of cutting: sorted, turned, sliced, built
by its config. Its logits have to be the teacher's, or no smaller student can be trusted. Where some norms
cannot be folded, they are those of the teacher whose norms are as the basis has them; what that adds to its
loss is measured when the basis is made. Rounding sets the tolerance: turned weights are rounded anew, and a
router may then choose another expert for some tokens, so a tenth of the tokens may differ by more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import token_slice, vocabulary_size
from evaluators.huggingface.residence import Residence
from evaluators.importance.kept_coordinates import norms_in_basis
from evaluators.teacher.weights import free_bytes
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import sorted_bytes
from space.input_error import InputError

logger = logging.getLogger(__name__)
#: Tokens of the block that are compared, at most.
_TOKENS = 256
#: The share of tokens whose logits have to agree.
_SHARE = 0.9
#: Tolerance, in square roots of the dtype's rounding error. Two trained Llamas of 5 and 8 layers take a ninth
#: of it in bfloat16 and turned, where rounding is largest.
_ROOTS = 2.0


def check_identity(
    residence: Residence, axis_map: AxisMap, ranking: Ranking, weights: Mapping[str, Tensor], block: Tensor
) -> None:
    """Check on one block that the uncut student gives the teacher's logits, and log by how much they differ.

    Where the student does not fit into memory beside what lies there, a line says that nothing was checked.

    Args:
        residence: the teacher's.
        axis_map: the teacher's.
        ranking: the teacher's.
        weights: the teacher's, sorted by this ranking.
        block: (T,) tokens of the calibration set.

    Raises:
        InputError: they differ by more than rounding explains; the message says where that begins.
    """
    model, device = residence.model, residence.device
    free, needed = free_bytes(device), sorted_bytes(axis_map, model.dtype)
    if free is not None and needed > free:
        logger.warning("the uncut student was not compared with the teacher: it does not fit beside it")
        return
    tokens = block[None, : min(_TOKENS, token_slice(vocabulary_size(model)))].long().to(device)
    with residence.on_device(), _as_turned(model, axis_map, ranking):
        expected = _logits(model, tokens)
    student = extract(weights, axis_map, ranking, axis_map.teacher, device=device)
    found = _logits(student, tokens)
    difference, tolerance = _difference(found, expected), _ROOTS * torch.finfo(model.dtype).eps ** 0.5
    if not difference <= tolerance:
        with residence.on_device(), _as_turned(model, axis_map, ranking):
            place = _parting(model, student, axis_map, ranking, tokens, tolerance)
        raise _no_identity(model, found, expected, difference, tolerance, place)
    logger.info("the uncut student gives the teacher's logits within %.1e of their spread", difference)


def _as_turned(model: PreTrainedModel, axis_map: AxisMap, ranking: Ranking) -> AbstractContextManager[None]:
    return nullcontext() if ranking.basis is None else norms_in_basis(model, axis_map, ranking.basis)


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return (T, V) logits on the host in float32."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().cpu()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return by how much the logits of most tokens differ, as a share of the spread over the vocabulary."""
    spread = expected.std(dim=-1).clamp_min(1e-6)
    return float(((found - expected).square().mean(-1).sqrt() / spread).quantile(_SHARE))


def _parting(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    axis_map: AxisMap,
    ranking: Ranking,
    tokens: Tensor,
    tolerance: float,
) -> str:
    """Return the first module that writes other states into the stream than the teacher's does."""
    places = list(_writers(teacher, axis_map))
    first, second = (_states(model, places, tokens) for model in (teacher, student))
    for place in places:
        expected, found = _as_in_student(first[place], axis_map, ranking), second[place]
        apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
        if not float(apart.quantile(_SHARE)) <= tolerance:
            return place
    roles = axis_map.roles
    return f"{roles.final_norm} or {roles.head}" if roles.final_norm else roles.head


def _writers(model: PreTrainedModel, axis_map: AxisMap) -> Iterator[str]:
    """Yield the embedding, and of each layer the linear modules that write to the stream, then the layer."""
    yield axis_map.roles.embedding.rpartition(".")[0]
    for layer in range(axis_map.teacher.layers):
        for tensor in axis_map.tensors:
            linear = len(tensor.axes) == 2 and isinstance(model.get_submodule(tensor.module), nn.Linear)
            if tensor.layer == layer and linear and Axis.HIDDEN in tensor.axes[0]:
                yield tensor.module
        yield f"{axis_map.stacks[0]}{layer}"


def _as_in_student(states: Tensor, axis_map: AxisMap, ranking: Ranking) -> Tensor:
    """Return the teacher's states in the order, or the basis, of the student."""
    if ranking.basis is not None:
        return states @ ranking.basis.rotation.float().cpu()
    if Axis.HIDDEN in axis_map.sortable:
        return states[..., ranking.order(Axis.HIDDEN, None).cpu()]
    return states


def _states(model: PreTrainedModel, places: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
    """Return (T, D) outputs of some modules, on the host in float32."""
    found: dict[str, Tensor] = {}

    def note(place: str, _: nn.Module, __: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found[place] = states.detach().float().cpu().flatten(0, -2)

    with ExitStack() as stack:
        for place in places:
            module = model.get_submodule(place)
            stack.callback(module.register_forward_hook(partial(note, place)).remove)
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    return found


def _no_identity(
    model: PreTrainedModel,
    found: Tensor,
    expected: Tensor,
    difference: float,
    tolerance: float,
    place: str,
) -> InputError:
    largest = float((found - expected).abs().max())
    return InputError(
        "a student of all of the teacher's sizes has to give the teacher's logits",
        f"that of {model.config.model_type!r} differs by up to {largest:.3g} in logits of up to "
        f"{float(expected.abs().max()):.3g}, and by {difference:.2g} of their spread where rounding explains "
        f"{tolerance:.2g}; the paths part at {place}",
        "Take --basis coordinate if the basis is another, or another --model",
    )
