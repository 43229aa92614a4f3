"""Which tokens are learnt stays with the blocks, however they are shuffled and cut."""

from __future__ import annotations

from dataclasses import replace

import torch

from evaluators.corpus.blocks import Corpus

BLOCKS = torch.arange(60, dtype=torch.int32).view(20, 3)
CORPUS = Corpus("text", BLOCKS[:1], BLOCKS, BLOCKS[:1], 3, "a fingerprint", BLOCKS % 2 == 0)


def test_a_mask_goes_with_its_blocks() -> None:
    for corpus in (CORPUS.mixed(), CORPUS.shortened(7), CORPUS.mixed().shortened(7)):
        assert corpus.distillation_learnt is not None
        assert torch.equal(corpus.distillation_learnt, corpus.distillation % 2 == 0)
    assert torch.equal(CORPUS.shortened(7).distillation, BLOCKS[:7])
    assert torch.equal(CORPUS.shortened(99).distillation, BLOCKS)


def test_without_a_mask_there_is_none_after() -> None:
    plain = replace(CORPUS, distillation_learnt=None)
    assert plain.mixed().distillation_learnt is None
    assert plain.shortened(7).distillation_learnt is None
