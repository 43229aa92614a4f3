"""Sizes of gzip and xz against what their formats say, and what text seen before is worth."""

from __future__ import annotations

import random

import pytest

from studies.demo.compressors import Compressor, after, gzip_bytes, separately, together, xz_bytes

NOISE = random.Random(0).randbytes(1000)
OTHER_NOISE = random.Random(1).randbytes(1000)
SENTENCE = b"Every token is counted once. " * 40


def test_gzip_of_noise_is_the_noise_and_its_frame() -> None:
    header, stored_block, trailer = 10, 5, 8
    assert gzip_bytes(NOISE) == 1000 + header + stored_block + trailer


def test_xz_of_noise_is_the_noise_and_its_frame() -> None:
    header, block_header, chunk_header, end, check, index, footer = 12, 12, 3, 1, 8, 12, 12
    frame = header + block_header + chunk_header + end + check + index + footer
    assert xz_bytes(NOISE) == 1000 + frame


@pytest.mark.parametrize(("compressor", "size"), [(gzip_bytes, 60), (xz_bytes, 108)])
def test_a_known_string(compressor: Compressor, size: int) -> None:
    """As the command lines count it, `gzip -9n | wc -c` and `xz -9e | wc -c`; versions differ a little."""
    assert compressor(SENTENCE) == pytest.approx(size, abs=4)


@pytest.mark.parametrize("compressor", [gzip_bytes, xz_bytes])
def test_documents_alone_together_and_after_others(compressor: Compressor) -> None:
    alone = compressor(NOISE)
    assert separately(compressor, [NOISE, OTHER_NOISE]) == 2 * alone
    assert together(compressor, [NOISE, NOISE]) < 1.1 * alone
    assert after(compressor, [NOISE], [NOISE]) < 0.1 * alone
    assert after(compressor, [OTHER_NOISE], [NOISE]) == pytest.approx(1000, abs=20)


def test_xz_remembers_what_lies_further_back_than_gzip_can_see() -> None:
    digits = NOISE.hex().encode()
    between = random.Random(2).randbytes(200_000).hex().encode()
    assert after(xz_bytes, [digits, between], [digits]) < 50
    assert after(gzip_bytes, [digits, between], [digits]) > 1000
