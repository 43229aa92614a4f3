"""The most probable next tokens of the teacher, renormalised: small, and biased. It is there to compare with.

What the teacher gives to all others is lost, so that a student which learns this is surer than the teacher
(arXiv 2503.16870, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.answer import Sparse
from evaluators.distillation.targets.form import FormName
from evaluators.distillation.targets.token_numbers import packed, unpacked
from evaluators.huggingface.final_states import logits_of, token_slice, vocabulary

#: At about the bytes of the usual number of draws.
K = 12


class TopK:
    """K token numbers for each token, and their probabilities in float16.

    Args:
        teacher: whose distributions are cut.
        temperature: τ, by which logits are divided before.
        k: K, at most the vocabulary.
    """

    def __init__(self, teacher: PreTrainedModel, temperature: float = 1.0, k: int = K) -> None:
        self.teacher, self.temperature, self.k = teacher, temperature, min(k, vocabulary(teacher))

    @property
    def about(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.TOP_K.value, "k": self.k, "temperature": self.temperature}

    @torch.no_grad()
    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``: ids (T, K) from the most probable on, probabilities (T, K) float16."""
        words = vocabulary(self.teacher)
        ids, probabilities = [], []
        for some in final.split(token_slice(words)):
            top = (logits_of(self.teacher, some).float() / self.temperature).topk(self.k, dim=-1)
            ids.append(packed(top.indices, words).cpu())
            probabilities.append(top.values.softmax(dim=-1).half().cpu())
        return {"ids": torch.cat(ids), "probabilities": torch.cat(probabilities)}

    def said(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Ids (B, T, K) int64, weights (B, T, K) float32 of sum 1, their entropy (B, T) float32 nats."""
        weights = torch.stack([record["probabilities"] for record in records]).float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        ids = unpacked(torch.stack([record["ids"] for record in records]))
        return ids, weights, torch.special.entr(weights).sum(dim=-1)

    def answer(self, *said: Tensor) -> Sparse:
        """See ``Form``."""
        return Sparse(*said)
