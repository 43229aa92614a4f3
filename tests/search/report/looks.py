"""What a run would find at its end of the models of the sample: their parts, and what they write."""

from __future__ import annotations

from typing import Any

PROMPTS = ["def area(width,", "\n\nclass Stack:\n    def push(self, item", "import os\n\n\ndef walk("]
ENERGY = {"joules": 41_300.5, "counters": {"processors of host": 41_300.5}}
_ANSWERS = [" height):\n    return width * height", "):\n        self.items.append(item)", "top):\n\tpass"]


def continuations(hand: str) -> list[dict[str, Any]]:
    """One for each prompt, by a model that signs them."""
    return [{"text": f"{answer}  # {hand}", "ended": place == 1} for place, answer in enumerate(_ANSWERS)]


def breakdown(sizes: dict[str, Any], vocabulary: int, head_size: int, latency_ms: float) -> dict[str, Any]:
    """Of a model with a tied head; a fifth of its latency is the prompt's."""
    hidden, layers = sizes["hidden"], sizes["layers"]
    prefill, decode = 0.2 * latency_ms, 0.8 * latency_ms / 32
    shares = {"embeddings": 0.01, "attention": 0.34, "mlp": 0.4, "head": 0.05, "rest": 0.2}
    return {
        "parameters": {
            "embeddings": vocabulary * hidden,
            "attention": layers * 2 * hidden * head_size * (sizes["heads"] + sizes["kv_heads"]),
            "mlp": layers * 3 * hidden * sizes["mlp"],
            "norms": (2 * layers + 1) * hidden,
        },
        "latency": {
            "prefill_ms": prefill,
            "decode_ms_per_token": decode,
            "answer": 32,
            "prefill": {part: share * prefill for part, share in shares.items()},
            "decode": {part: share * decode for part, share in shares.items()},
        },
    }
