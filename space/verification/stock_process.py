"""Someone who has torch and transformers alone reads students from disk: run in a process of its own.

``python -I stock_process.py FOLDER`` looks at every folder in FOLDER, each with a student in ``student``,
``seen.safetensors`` and its teacher's config beside it, and prints a JSON object: the folder's name to what
is wrong, or to null.
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


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a message."""
        self.heard.append(record.getMessage())


@torch.no_grad()
def load_error(case: Path, heard: list[str]) -> str | None:
    """What is wrong with a student on disk; None if nothing is.

    Args:
        case: its folder.
        heard: fills with what transformers says; what it says of the teacher's config too does not count.
    """
    seen = load_file(case / "seen.safetensors")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(case / "teacher"))
    of_the_class = {*heard}
    heard.clear()
    loaded: Any = AutoModelForCausalLM.from_pretrained(case / "student", output_loading_info=True)
    model, info = loaded
    for kind, keys in info.items():
        if keys:
            return f"{kind}: {sorted(map(str, keys))}"
    there = sum(parameter.numel() for parameter in model.parameters())
    if there != int(seen["parameters"]):
        return f"{there} parameters are there, {int(seen['parameters'])} were saved"
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    logits: torch.Tensor = model(input_ids=seen["tokens"], use_cache=False).logits
    if not torch.allclose(logits, seen["logits"], rtol=1e-5, atol=1e-5):
        return f"logits differ by {float((logits - seen['logits']).abs().max()):.1g}"
    if _generated(model, seen["tokens"], True) != _generated(model, seen["tokens"], False):
        return "other tokens with a KV cache than without"
    warned = (said for said in heard if said not in of_the_class and "is not installed" not in said)
    return next((f"it warns: {said}" for said in warned), None)


def _generated(model: Any, tokens: torch.Tensor, use_cache: bool) -> Any:
    rest: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    rest["attention_mask"] = torch.ones_like(tokens)
    return model.generate(tokens, use_cache=use_cache, **rest).tolist()


def main(folder: Path) -> None:
    """Look at every student in a folder and print what is wrong with each."""
    torch.set_num_threads(1)
    listener = _Listener()
    logging.getLogger("transformers").handlers = [listener]
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("error")
    found: dict[str, str | None] = {}
    for case in sorted(folder.iterdir()):
        try:
            found[case.name] = load_error(case, listener.heard)
        except Exception as error:
            found[case.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    own = [name for name in ("space", "evaluators", "search", "studies") if name in sys.modules]
    assert not own, f"this process must know nothing of {own}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
