"""A model as an ordinary Hugging Face directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.huggingface.quiet import quiet


def write_directory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    path: Path,
    **saving: Any,
) -> None:
    """Write a directory that transformers loads, in place of one before once it is whole.

    Args:
        model: comes out in ``dtype``.
        tokenizer: goes with it.
        dtype: of the weights on disk.
        path: of the directory.
        saving: further arguments of ``save_pretrained`` of the model, whose defaults are those of the shards.

    Raises:
        OSError: the disk is full; what was at ``path`` is as it was.
    """
    new = path.with_name(path.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet():
        nn.Module.to(model, dtype)
        model.save_pretrained(new, **saving)
        tokenizer.save_pretrained(new)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(new, path)
