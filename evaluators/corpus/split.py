"""Which documents are for what: decided by name alone, so that no document is ever in two splits."""

from __future__ import annotations

import hashlib
from enum import StrEnum


class Split(StrEnum):
    """The three uses of text in a search."""

    CALIBRATION = "calibration"
    DISTILLATION = "distillation"
    VALIDATION = "validation"


#: Of 20 documents one is for validation and one for calibration; the rest is for distillation.
_BUCKETS = 20


def split_of(name: str) -> Split:
    """The split of the document called ``name``: a hash, the same on every machine and for ever.

    The embedded teacher was trained on everything but the validation split, so this function may
    not change without training it again.
    """
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _BUCKETS
    return {0: Split.VALIDATION, 1: Split.CALIBRATION}.get(bucket, Split.DISTILLATION)
