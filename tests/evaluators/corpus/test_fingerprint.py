from __future__ import annotations

import hashlib
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.blocks import fingerprint
from tests.warm_python import warm_run


def test_a_known_fingerprint() -> None:
    """The bytes written down by hand: lengths before contents, so that parts cannot run together."""
    tensor = torch.tensor([[1, 2]], dtype=torch.int32)
    wanted = (
        (3).to_bytes(8, "big") + b"abc" + (2).to_bytes(8, "big") + b"42"
        + (27).to_bytes(8, "big") + b"torch.int32 (1, 2) " + b"\x01\0\0\0\x02\0\0\0"
    )  # fmt: skip
    assert fingerprint("abc", 42, tensor) == hashlib.sha256(wanted).hexdigest()


@given(st.lists(st.text(max_size=5), max_size=5), st.lists(st.text(max_size=5), max_size=5))
def test_texts_have_the_same_fingerprint_only_if_they_are_the_same(one: list[str], other: list[str]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([[1, 2, 3], [4, 5, 7]]),
        torch.tensor([[1, 2], [3, 4], [5, 6]]),
        torch.tensor([1, 2, 3, 4, 5, 6]),
        torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32),
        torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
    ],
)
def test_content_shape_and_dtype_of_a_tensor_matter(other: torch.Tensor) -> None:
    assert fingerprint(other) != fingerprint(torch.tensor([[1, 2, 3], [4, 5, 6]]))


def test_where_a_tensor_lies_does_not_matter() -> None:
    tensor = torch.arange(24).view(4, 6)
    assert fingerprint(tensor[::2, 1:4]) == fingerprint(tensor[::2, 1:4].clone())
    assert fingerprint(tensor.T) == fingerprint(tensor.T.contiguous()) != fingerprint(tensor)


def test_another_process_finds_the_same() -> None:
    code = "from evaluators.corpus.blocks import fingerprint; print(fingerprint('a', 1))"
    command = [sys.executable, "-c", code]
    done = warm_run(command, timeout=60)
    assert done.stdout.strip() == fingerprint("a", 1)
