"""What a corpus is once it is read: three sets of token blocks that share no document."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from evaluators.corpus.split import Split


@dataclass(frozen=True)
class Corpus:
    """Token blocks for the three uses of text; N differs, T is the same.

    Attributes:
        id: what the user named, or "the Python standard library".
        calibration: (N, T) int32.
        distillation: (N, T) int32, in the order in which training reads it: that of the documents,
            unless it is ``mixed``.
        validation: (N, T) int32.
        validation_bytes: UTF-8 bytes of the text of the validation blocks, separators not counted.
        fingerprint: SHA-256 over the blocks of the three splits.
    """

    id: str
    calibration: Tensor
    distillation: Tensor
    validation: Tensor
    validation_bytes: int
    fingerprint: str

    @property
    def block(self) -> int:
        """T, tokens a block."""
        return self.validation.shape[1]

    @property
    def blocks(self) -> dict[Split, Tensor]:
        """The blocks by the name of their split."""
        return {
            Split.CALIBRATION: self.calibration,
            Split.DISTILLATION: self.distillation,
            Split.VALIDATION: self.validation,
        }

    def mixed(self) -> Corpus:
        """The same with the distillation blocks in an order that keeps those of a document apart.

        It is the same order everywhere. Batches of neighbours teach less (studies/LOG.md).
        """
        places = list(range(len(self.distillation)))
        random.Random(0).shuffle(places)
        return replace(self, distillation=self.distillation[places])


def fingerprint_of(blocks: Mapping[Split, Tensor]) -> str:
    """SHA-256, as hexadecimal digits, over the names, shapes and tokens of the splits."""
    digest = hashlib.sha256()
    for split in Split:
        tokens = blocks[split]
        digest.update(f"{split} {tuple(tokens.shape)} {tokens.dtype}\n".encode())
        digest.update(tokens.contiguous().numpy().data)
    return digest.hexdigest()
