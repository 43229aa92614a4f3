"""Silence what torchao and PyTorch log when transformers imports torchao, long before any code of ours runs.

They say which of torchao's kernels cannot be loaded here, none of which is used, and what will be deprecated.
This module is imported with each package, since it has to come before transformers.
"""

from __future__ import annotations

import logging

for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
