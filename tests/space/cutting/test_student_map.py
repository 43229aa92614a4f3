"""The map of a student is what asking its class would give."""

from __future__ import annotations

import random

import pytest

from space.cutting.extraction import student_map
from space.discovery.discovery import discover
from space.verification.contract import random_architecture
from space.verification.reload import captured_warnings
from tests.contracts.tiny import verified

#: What says which dimension is whose.
_DRAWN = ("tensors", "stacks", "roles", "buffers", "couplings", "kinds", "head_dim", "teacher")


@pytest.mark.parametrize("case", ["llama-tied-biases", "gpt2", "qwen2_moe"])
def test_it_is_the_one_that_discovery_draws(case: str) -> None:
    found, rng, tried = verified(case), random.Random(1), 0
    for _ in range(6):
        drawn = random_architecture(found.small, found.small.free, rng)
        assert drawn is not None
        architecture, layers = drawn
        if len({found.small.kinds[layer] for layer in layers}) < len(set(found.small.kinds)):
            continue  # an axis that no layer is left of is not seen by asking
        mapped = student_map(found.small, architecture, layers)
        with captured_warnings():
            again = discover(mapped.config, found.choices, found.attention, found.tie).axis_map
        for name in _DRAWN:
            assert getattr(mapped, name) == getattr(again, name), (name, architecture.label)
        tried += 1
    assert tried
