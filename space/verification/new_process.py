"""Students handed to a process that knows nothing of this project (``space/verification/stranger.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel

from space.verification import stranger
from space.verification.draws import one_expert_at_a_time
from space.verification.trial import logits_of, trial_tokens


def leave(student: PreTrainedModel, teacher: PretrainedConfig, folder: Path) -> None:
    """Save a student for the stranger, with what it computes here.

    Args:
        student: a small one.
        teacher: the config of its teacher.
        folder: a new one for it alone; all folders that are asked about at once lie in one.
    """
    one_expert_at_a_time(student)
    student.save_pretrained(folder / "student")
    teacher.save_pretrained(folder / "teacher")
    tokens = trial_tokens(student.config.get_text_config().vocab_size)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    seen = {"tokens": tokens, "logits": logits_of(student, tokens).contiguous()}
    save_file(seen | {"parameters": torch.tensor(parameters)}, folder / "seen.safetensors")


def complaints(folder: Path) -> dict[str, str | None]:
    """What a new process finds wrong with each student in a folder, by the name that it was left under.

    Raises:
        RuntimeError: the process failed as a whole.
    """
    command = [sys.executable, "-I", stranger.__file__, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that reads students failed: {done.stderr[-500:]}")
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found
