"""What the teacher says of the distillation set: computed once, kept on disk, shared by all candidates.

The final hidden states are kept in bfloat16; the loss applies the teacher's own head to them, so the
divergence is the true one at the price of one matrix product.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.targets.batch import Batch
from evaluators.distillation.targets.live import OfTeacher
from evaluators.final_states import final_states, states_width

_TOKENS_AT_ONCE = 4096


class CachedTargets(OfTeacher):
    """The teacher's final states, read from a file that ``cache_targets`` wrote."""

    def __init__(self, path: Path, teacher: PreTrainedModel, tokens: Tensor) -> None:
        super().__init__(teacher, tokens)
        shape = (*tokens.shape, states_width(teacher))
        size = shape[0] * shape[1] * shape[2]
        self._states = torch.from_file(str(path), size=size, dtype=torch.bfloat16).view(shape)

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        device = self.teacher.device
        return Batch(self.tokens[numbers].to(device, torch.long), (self._states[numbers].to(device),))


def cache_bytes(tokens: int, width: int) -> int:
    """Bytes on disk of the cached states of so many tokens, each state of ``width`` numbers."""
    return 2 * tokens * width


def is_cached(path: Path, fingerprint: str) -> bool:
    """Whether the file at ``path`` is whole and belongs to ``fingerprint``."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        return bool(about["fingerprint"] == fingerprint and about["checksum"] == _checksum(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@torch.no_grad()
def cache_targets(
    teacher: PreTrainedModel,
    tokens: Tensor,
    path: Path,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
) -> None:
    """Run the teacher over all blocks and write its final states.

    Args:
        teacher: in evaluation mode.
        tokens: (N, T) token numbers.
        path: of the states; a JSON file beside it names what they belong to and is written last.
        fingerprint: of teacher and tokens.
        advance: told the number of blocks after each batch.

    Raises:
        OSError: the disk is full. What was there before stays, and nothing unfinished is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = path.with_suffix(".json")
    new_states, new_about = path.with_suffix(".new"), path.with_suffix(".json.new")
    try:
        with new_states.open("wb") as file:
            for batch in tokens.split(max(1, _TOKENS_AT_ONCE // tokens.shape[1])):
                states = final_states(teacher, batch.to(teacher.device, torch.long))
                file.write(states.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
                advance(len(batch))
        new_about.write_text(json.dumps({"fingerprint": fingerprint, "checksum": _checksum(new_states)}))
        os.replace(new_states, path)  # until the next line the JSON is that of other states, and not believed
        os.replace(new_about, about)
    finally:
        new_states.unlink(missing_ok=True)
        new_about.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(2**24):
            value = zlib.crc32(piece, value)
    return f"crc32 {value:08x} of {path.stat().st_size} bytes"
