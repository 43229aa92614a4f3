"""Targets of a few next tokens: drawn without bias, or the most probable ones to compare with.

The counts of N draws over N are the teacher's distribution in the mean, and forward KL is linear in that
distribution up to its entropy, which is kept beside them: so value and gradient are the full ones in the
mean (arXiv 2503.16870, section 4).

What the teacher gives to all others is lost, so that a student which learns this is surer than the teacher
(arXiv 2503.16870, section 3).
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
    """Of one token number: 2 up to 65,536 tokens, else 4."""
    return 2 if vocabulary <= 2**16 else 4


def pack_ids(ids: Tensor, vocabulary: int) -> Tensor:
    """Token numbers of any shape as int16, those from 32,768 on as negative numbers, or as int32."""
    return ids.to(torch.int16 if bytes_per_id(vocabulary) == 2 else torch.int32)


def unpack_ids(numbers: Tensor) -> Tensor:
    """int64 token numbers, from what ``pack_ids`` gave."""
    return numbers.long() & 0xFFFF if numbers.dtype == torch.int16 else numbers.long()


#: Of the source; about 12 distinct tokens.
DRAWS = 50


class Sampled:
    """N draws for each token, as distinct token numbers with their counts, and the teacher's entropy.

    Args:
        teacher: whose distributions are drawn from.
        temperature: τ, by which logits are divided before.
        draws: N, at most 255.
        seed: of the draws; those of a block depend on it and the block's number alone.
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
        """See ``Form``: ids (M,), counts (M,) uint8, lengths (T,) uint8, entropy (T,) float32 nats."""
        words = vocabulary_size(self.teacher)
        size, random = token_slice(words), np.random.default_rng([self.seed, number])
        uniform = torch.from_numpy(random.random((len(final), self.draws)))
        entropies, drawn = [], []
        for some, places in zip(final.split(size), uniform.split(size), strict=True):
            teacher = (logits_of(self.teacher, some).float() / self.temperature).softmax(dim=-1)
            entropies.append(torch.special.entr(teacher).sum(dim=-1).cpu())
            drawn.append(draw_tokens(teacher, places.to(teacher.device)).cpu())
        ids, counts, lengths = distinct_counts(torch.cat(drawn))
        return {
            "ids": pack_ids(ids, words),
            "counts": counts.to(torch.uint8),
            "lengths": lengths.to(torch.uint8),
            "entropy": torch.cat(entropies),
        }

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Ids (B, T, K) int64, weights (B, T, K) float32, entropy (B, T) float32; K the most distinct."""
        lengths = torch.stack([record["lengths"] for record in records]).long()
        filled = torch.arange(int(lengths.max())) < lengths[..., None]
        ids = torch.zeros(filled.shape, dtype=torch.long)
        weights = torch.zeros(filled.shape)
        ids[filled] = unpack_ids(torch.cat([record["ids"] for record in records]))
        weights[filled] = torch.cat([record["counts"] for record in records]).float() / self.draws
        return ids, weights, torch.stack([record["entropy"] for record in records])

    def predictions(self, *targets: Tensor) -> Sparse:
        """See ``Form``."""
        return Sparse(*targets)


def draw_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n, N) token numbers by inversion of the distribution function, summed in float64.

    Args:
        probabilities: (n, V); a token of probability 0 is never drawn.
        uniform: (n, N) float64, each from [0, 1).
    """
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64
    below = probabilities.to(wide).cumsum(dim=-1)
    at = uniform.to(below) * below[:, -1:]
    return torch.searchsorted(below, at, right=True).clamp(max=probabilities.shape[-1] - 1)


def distinct_counts(drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct token numbers of each row one after the other, how often each occurs, how many a row has.

    Args:
        drawn: (T, N) token numbers.

    Returns:
        (M,), (M,) and (T,) int64; the second sums to T × N, the third to M.
    """
    ordered = drawn.sort(dim=-1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = first.flatten().nonzero().flatten()
    counts = torch.diff(starts, append=starts.new_tensor([ordered.numel()]))
    return ordered[first], counts, first.sum(dim=-1)


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
        self.teacher, self.temperature, self.k = teacher, temperature, min(k, vocabulary_size(teacher))

    @property
    def description(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.TOP_K.value, "k": self.k, "temperature": self.temperature}

    @torch.no_grad()
    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``: ids (T, K) from the most probable on, probabilities (T, K) float16."""
        words = vocabulary_size(self.teacher)
        ids, probabilities = [], []
        for some in final.split(token_slice(words)):
            top = (logits_of(self.teacher, some).float() / self.temperature).topk(self.k, dim=-1)
            ids.append(pack_ids(top.indices, words).cpu())
            probabilities.append(top.values.softmax(dim=-1).half().cpu())
        return {"ids": torch.cat(ids), "probabilities": torch.cat(probabilities)}

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Ids (B, T, K) int64, weights (B, T, K) float32 of sum 1, their entropy (B, T) float32 nats."""
        weights = torch.stack([record["probabilities"] for record in records]).float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        ids = unpack_ids(torch.stack([record["ids"] for record in records]))
        return ids, weights, torch.special.entr(weights).sum(dim=-1)

    def predictions(self, *targets: Tensor) -> Sparse:
        """See ``Form``."""
        return Sparse(*targets)
