"""Whether a class's layers depend on one another through their states alone.

Some classes hand keys, values or more from layer to layer beside the states. Then a pass that does
not run the first layers differs from one that does, or fails, and every pass has to be a whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.depth.passes import Passes
from space.axes.axis_map import AxisMap

#: Tokens that both ways are compared on.
_TOKENS = 8


@torch.no_grad()
def only_states(model: PreTrainedModel, axis_map: AxisMap, calibration: Tensor) -> bool:
    """Whether passes that start in the middle give what whole passes give.

    Compared are passes that start at every layer and lack none, and two that lack some.

    Args:
        model: in evaluation mode.
        axis_map: its map.
        calibration: (N, T) token numbers, of which a few are used.
    """
    tokens = calibration[:1, :_TOKENS].to(model.device, torch.long)
    layers = axis_map.teacher.layers
    quick = Passes(model, axis_map, tokens)
    whole = Passes(model, axis_map, tokens, reuse=False)
    wanted = {(layer, layer): quick.whole for layer in range(1, layers)}
    wanted |= {block: whole.without(*block) for block in {(0, 1), (layers // 3, max(1, layers - 1))}}
    try:
        return all(_alike(quick.without(*block), states) for block, states in wanted.items())
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError):
        return False


def _alike(found: Tensor, wanted: Tensor) -> bool:
    """Up to half the digits; where there are no numbers, nothing speaks against it."""
    off = float((found - wanted).abs().max())
    return not off > torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
