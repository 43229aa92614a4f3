"""A name for data: the same for the same content, on any machine."""

from __future__ import annotations

import hashlib

from torch import Tensor


def fingerprint(*parts: str | int | Tensor) -> str:
    """SHA-256 in hexadecimal over texts, numbers and tensors, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            content = f"{part.dtype} {tuple(part.shape)} ".encode() + part.contiguous().numpy().tobytes()
        else:
            content = str(part).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()
