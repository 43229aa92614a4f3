"""Check saved students with torch and transformers alone, in a process that imports nothing of this project.

``python -I stock_process.py FOLDER`` checks every folder in FOLDER. Each holds a student in ``student``, its
logits in ``seen.safetensors`` and its teacher's config in ``teacher``. The output is a JSON object: the name
of each folder, and what is wrong with its student or null.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

_NEW_TOKENS = 8


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record a message."""
        self.messages.append(record.getMessage())


@torch.no_grad()
def load_error(case: Path, messages: list[str]) -> str | None:
    """Return what is wrong with a student on disk; None if nothing is.

    Args:
        case: its folder.
        messages: collects the warnings of transformers; those about the teacher's config do not count.
    """
    seen = load_file(case / "seen.safetensors")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(case / "teacher"))
    of_the_teacher = {*messages}
    messages.clear()
    loaded: Any = AutoModelForCausalLM.from_pretrained(case / "student", output_loading_info=True)
    model, info = loaded
    for kind, keys in info.items():
        if keys:
            return f"{kind}: {sorted(map(str, keys))}"
    actual = sum(parameter.numel() for parameter in model.parameters())
    if actual != int(seen["parameters"]):
        return f"{actual} parameters are there, {int(seen['parameters'])} were saved"
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    logits: torch.Tensor = model(input_ids=seen["tokens"], use_cache=False).logits
    if not torch.allclose(logits, seen["logits"], rtol=1e-5, atol=1e-5):
        return f"logits differ by {float((logits - seen['logits']).abs().max()):.1g}"
    if _generated(model, seen["tokens"], True) != _generated(model, seen["tokens"], False):
        return "other tokens with a KV cache than without"
    warned = (text for text in messages if text not in of_the_teacher and "is not installed" not in text)
    return next((f"it warns: {text}" for text in warned), None)


def _generated(model: Any, tokens: torch.Tensor, use_cache: bool) -> Any:
    options: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(tokens)
    return model.generate(tokens, use_cache=use_cache, **options).tolist()


def main(folder: Path) -> None:
    """Check every student in a folder and print what is wrong with each."""
    torch.set_num_threads(1)
    listener = _Recorder()
    logging.getLogger("transformers").handlers = [listener]
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("error")
    found: dict[str, str | None] = {}
    for case in sorted(folder.iterdir()):
        try:
            found[case.name] = load_error(case, listener.messages)
        except Exception as error:
            found[case.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    own = [name for name in ("space", "evaluators", "search", "studies") if name in sys.modules]
    assert not own, f"this process must know nothing of {own}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
