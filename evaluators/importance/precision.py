"""bfloat16 for the products of a forward pass, float32 for what is summed up from its activations."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def products(model: PreTrainedModel, bfloat16: bool) -> torch.autocast:
    """Return a context in which a model in float32 multiplies its matrices in bfloat16, if so wished.

    A model whose weights are in bfloat16 does so anyhow.
    """
    wanted = bfloat16 and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=wanted)


def full_precision(values: Tensor) -> torch.autocast:
    """Return a context in which products of float32 are float32 on the device of these values."""
    return torch.autocast(values.device.type, enabled=False)
