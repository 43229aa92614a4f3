"""What PyTorch counts while a model runs."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode


def flops_of(counter: FlopCounterMode) -> int:
    """All but the angles of rotary positions, which are a matrix product in transformers 5.17."""
    counts = counter.get_flop_counts().items()
    angles = sum(sum(one.values()) for module, one in counts if module.endswith("rotary_emb"))
    return counter.get_total_flops() - angles
