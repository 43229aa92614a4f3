"""Bits per byte of a run: of all its validation text, and of nothing less."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from evaluators.corpus.blocks import Corpus
from search.stages.run_context import RunContext

BLOCKS = torch.zeros(3, 5, dtype=torch.int32)
CORPUS = Corpus("text", BLOCKS, BLOCKS, BLOCKS, 24, "a fingerprint")


def bits(corpus: Corpus, loss: float) -> float | None:
    return RunContext.bits_per_byte(cast(RunContext, SimpleNamespace(corpus=corpus)), loss)


def test_twelve_predicted_tokens_of_two_bytes() -> None:
    assert bits(CORPUS, math.log(2)) == pytest.approx(0.5)


def test_the_bytes_of_answers_alone_are_not_known() -> None:
    assert bits(replace(CORPUS, validation_learnt=torch.ones(3, 5, dtype=torch.bool)), 1.0) is None
