"""Sparse targets: next tokens sampled from the teacher, or its top k for comparison.

``Sampled`` is unbiased. The counts of N draws, divided by N, equal the teacher's distribution in expectation.
Forward KL is linear in that distribution up to its entropy, which is stored beside them, so loss and gradient
equal the full ones in expectation (arXiv 2503.16870, section 4).

``TopK`` is biased. It drops the probability of all other tokens, so a student becomes more confident than the
teacher (arXiv 2503.16870, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.targets.batch import FormName, Sparse
from evaluators.huggingface.final_states import logits_of, token_slice, vocabulary_size


def bytes_per_id(vocabulary: int) -> int:
    """Return the bytes of a stored token id: 2 for a vocabulary of up to 65,536 tokens, else 4."""
    return 2 if vocabulary <= 2**16 else 4


def pack_ids(ids: Tensor, vocabulary: int) -> Tensor:
    """Pack token ids of any shape as int16, where ids from 32,768 on become negative, or as int32."""
    return ids.to(torch.int16 if bytes_per_id(vocabulary) == 2 else torch.int32)


def unpack_ids(packed: Tensor) -> Tensor:
    """Return int64 token ids from the result of ``pack_ids``."""
    return packed.long() & 0xFFFF if packed.dtype == torch.int16 else packed.long()


#: N of the paper; gives about 12 distinct tokens.
DRAWS = 50


class Sampled:
    """The form that stores N draws per position, as distinct ids with counts, and the teacher's entropy.

    Args:
        teacher: the model whose distributions are sampled.
        temperature: τ, which divides the logits first.
        draws: N, at most 255.
        seed: seed of the draws; those of a block depend only on it and the block's number.
    """

    def __init__(
        self, teacher: PreTrainedModel, temperature: float = 1.0, draws: int = DRAWS, seed: int = 0
    ) -> None:
        assert 1 <= draws <= 255, "a count is kept in one byte"
        self.teacher, self.temperature, self.draws, self.seed = teacher, temperature, draws, seed

    @property
    def description(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {
            "form": FormName.SAMPLED.value,
            "draws": self.draws,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @torch.no_grad()
    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``: ids (M,), counts (M,) uint8, lengths (n,) uint8, entropy (n,) float32 in nats."""
        vocabulary = vocabulary_size(self.teacher)
        size, random = token_slice(vocabulary), np.random.default_rng([self.seed, number])
        uniform = torch.from_numpy(random.random((len(final), self.draws)))
        entropies, drawn = [], []
        for states, points in zip(final.split(size), uniform.split(size), strict=True):
            teacher = (logits_of(self.teacher, states).float() / self.temperature).softmax(dim=-1)
            entropies.append(torch.special.entr(teacher).sum(dim=-1).cpu())
            drawn.append(draw_tokens(teacher, points.to(teacher.device)).cpu())
        ids, counts, lengths = distinct_counts(torch.cat(drawn))
        return {
            "ids": pack_ids(ids, vocabulary),
            "counts": counts.to(torch.uint8),
            "lengths": lengths.to(torch.uint8),
            "entropy": torch.cat(entropies),
        }

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Return ids (n, K) int64, weights (n, K) and entropy (n,) float32; K: most distinct ids."""
        lengths = torch.cat([record["lengths"] for record in records]).long()
        filled = torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]
        ids = torch.zeros(filled.shape, dtype=torch.long)
        weights = torch.zeros(filled.shape)
        ids[filled] = unpack_ids(torch.cat([record["ids"] for record in records]))
        weights[filled] = torch.cat([record["counts"] for record in records]).float() / self.draws
        return ids, weights, torch.cat([record["entropy"] for record in records])

    def predictions(self, *targets: Tensor) -> Sparse:
        """See ``Form``."""
        return Sparse(*targets)


def draw_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw (n, N) token ids by inverse transform sampling, with the CDF in float64.

    Args:
        probabilities: (n, V); a token of probability 0 is never drawn.
        uniform: (n, N) float64, uniform in [0, 1).
    """
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64
    cumulative = probabilities.to(wide).cumsum(dim=-1)
    points = uniform.to(cumulative) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).clamp(max=probabilities.shape[-1] - 1)


def distinct_counts(drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count the distinct token ids in each row.

    Args:
        drawn: (T, N) token ids.

    Returns:
        int64: (M,) the distinct ids, row after row; (M,) their counts, with sum T × N; (T,) the number of
        distinct ids per row, with sum M.
    """
    ordered = drawn.sort(dim=-1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = first.flatten().nonzero().flatten()
    counts = torch.diff(starts, append=starts.new_tensor([ordered.numel()]))
    return ordered[first], counts, first.sum(dim=-1)


#: Takes about as many bytes as the default number of draws.
K = 12


class TopK:
    """The form that stores the K most probable ids per position, with probabilities in float16.

    Args:
        teacher: the model whose distributions are truncated.
        temperature: τ, which divides the logits first.
        k: K, capped at the vocabulary size.
    """

    def __init__(self, teacher: PreTrainedModel, temperature: float = 1.0, k: int = K) -> None:
        self.teacher, self.temperature, self.k = teacher, temperature, min(k, vocabulary_size(teacher))

    @property
    def description(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.TOP_K.value, "k": self.k, "temperature": self.temperature}

    @torch.no_grad()
    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``: ids (n, K), most probable first, and probabilities (n, K) float16."""
        vocabulary = vocabulary_size(self.teacher)
        ids, probabilities = [], []
        for states in final.split(token_slice(vocabulary)):
            top = (logits_of(self.teacher, states).float() / self.temperature).topk(self.k, dim=-1)
            ids.append(pack_ids(top.indices, vocabulary).cpu())
            probabilities.append(top.values.softmax(dim=-1).half().cpu())
        return {"ids": torch.cat(ids), "probabilities": torch.cat(probabilities)}

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Return ids (n, K) int64, weights (n, K) with sum 1 and their entropy (n,), float32."""
        weights = torch.cat([record["probabilities"] for record in records]).float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        ids = unpack_ids(torch.cat([record["ids"] for record in records]))
        return ids, weights, torch.special.entr(weights).sum(dim=-1)

    def predictions(self, *targets: Tensor) -> Sparse:
        """See ``Form``."""
        return Sparse(*targets)
