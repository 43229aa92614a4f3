"""One forward pass over the calibration set, and every axis of the teacher is ranked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.fingerprint import fingerprint
from evaluators.importance.activations import Listener, finite
from space.axis_map import AxisMap
from space.ranking import Ranking

METHOD = "activations, batch = L2, sequence = mean; layers by block influence"
_TOKENS_AT_ONCE = 4096


def ranking_fingerprint(teacher: str, calibration: Tensor) -> str:
    """What a ranking depends on: the teacher's fingerprint, the calibration blocks, the method."""
    return fingerprint(teacher, calibration, METHOD)


@torch.no_grad()
def rank(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
) -> Ranking:
    """Rank neurons, heads, hidden dimensions and layers in one forward-only pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token numbers; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: told the number of blocks after each batch.

    Raises:
        InputError: activations are not finite.
    """
    listener = Listener(model, axis_map)
    with listener.on(model):
        for batch in calibration.split(max(1, _TOKENS_AT_ONCE // calibration.shape[1])):
            model.base_model(input_ids=batch.to(model.device, torch.long), use_cache=False)
            advance(len(batch))
    return Ranking(
        hidden=finite(torch.stack([squares.norm for squares in listener.norms.values()]).sum(0), "hidden"),
        mlp=finite(torch.stack([squares.norm for squares in listener.neurons]), "the MLPs"),
        heads=finite(torch.stack([squares.norm for squares in listener.heads]), "the heads"),
        layers=finite(torch.tensor([influence.value for influence in listener.influences]), "the layers"),
        kv_heads=axis_map.teacher.kv_heads,
        method=METHOD,
        fingerprint=fingerprint,
    )
