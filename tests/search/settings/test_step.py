"""Blocks, steps of training and the long part of retraining, as they are named or by default."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from search.settings.flags import Flags
from search.settings.scale import SCALES
from search.settings.step import long_fields, read_long_context, step_of
from space.input_error import InputError

SMALL = SCALES[0]
CONFIG = LlamaConfig(max_position_embeddings=2048)


def flags(**others: str) -> Flags:
    return Flags(budget="1M", **others)  # type: ignore[arg-type]


def test_by_default_the_scale_decides() -> None:
    assert step_of(flags(), SMALL, CONFIG, 10**6) == (SMALL.block, SMALL.batch_blocks)


def test_a_named_block_keeps_the_tokens_of_a_step() -> None:
    assert step_of(flags(block="256"), SMALL, CONFIG, 10**6) == (256, 4)
    assert step_of(flags(block="256", batch_tokens="2k"), SMALL, CONFIG, 10**6) == (256, 7)
    assert step_of(flags(batch_tokens="4096"), SMALL, CONFIG, 10**6) == (128, 32)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"it has 2,048\. Give at most --block 2048"):
        step_of(flags(block="4096"), SMALL, CONFIG, 10**6)
    with pytest.raises(InputError, match=r"a block has 128 tokens\. Give at least --batch-tokens 128"):
        step_of(flags(batch_tokens="64"), SMALL, CONFIG, 10**6)


def test_a_long_part_is_read() -> None:
    assert read_long_context(None) == (0, 0.0)
    assert read_long_context("1024=5%") == (1024, 0.05)
    assert read_long_context("32k=0.1") == (32_000, 0.1)
    for wrong in ("32k", "32k=", "32k=60%", "32k=-1%", "=5%"):
        with pytest.raises(InputError):
            read_long_context(wrong)


def test_a_long_block_is_made_of_blocks_and_a_step_of_long_ones() -> None:
    assert long_fields(flags(long_context="512=5%"), CONFIG, 128, 8) == {
        "long_block": 512,
        "long_share": 0.05,
    }
    assert long_fields(flags(), CONFIG, 128, 8) == {"long_block": 0, "long_share": 0.0}
    for wrong, message in (
        ("500=5%", "a block has 128 tokens, a step 1,024"),
        ("128=5%", "a block has 128 tokens"),
        ("2048=5%", "a step 1,024. Try --long-context 1024=0.05"),
    ):
        with pytest.raises(InputError, match=message):
            long_fields(flags(long_context=wrong), CONFIG, 128, 8)
    with pytest.raises(InputError, match="it has 2,048"):
        long_fields(flags(long_context="4096=5%"), CONFIG, 128, 64)
