"""The oracle's oracle: students of Llama and its kin, written out by hand for their modules' own names.

It shares no code with the extraction, nor with the masked teacher of any class. Which units are kept
follows from the scores by the plainest rule there is, one unit at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.cutting.ranking import Ranking


def best(scores: Sequence[float], count: int) -> list[int]:
    """The places of the highest scores, best first; of equal ones the earlier is better."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])[:count]


def kept_heads(scores: Sequence[float], kv_heads: int, student: Architecture) -> set[int]:
    """Whole KV groups by the sum of their heads' scores, then the best heads of each kept group."""
    size, each = len(scores) // kv_heads, student.heads // student.kv_heads
    groups = [range(first, first + size) for first in range(0, len(scores), size)]
    kept = best([sum(scores[head] for head in group) for group in groups], student.kv_heads)
    return {groups[k][place] for k in kept for place in best([scores[head] for head in groups[k]], each)}


@torch.no_grad()
def masked_teacher(
    teacher: PreTrainedModel, head_dim: int, ranking: Ranking, student: Architecture, layers: Sequence[int]
) -> PreTrainedModel:
    """A copy of the teacher, of its full width, that computes what the student has to compute."""
    masked: Any = copy.deepcopy(teacher)
    for number, layer in enumerate(masked.model.layers):
        neurons = ranking.scores[Axis.MLP][number].tolist()
        for neuron in set(range(len(neurons))) - set(best(neurons, student.mlp)):
            layer.mlp.down_proj.weight[:, neuron] = 0
        heads = ranking.scores[Axis.HEADS][number].tolist()
        for head in set(range(len(heads))) - kept_heads(heads, ranking.kv_heads, student):
            layer.self_attn.o_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
    _mask_hidden(masked, ranking.scores[Axis.HIDDEN].tolist(), student.hidden)
    _drop_layers(masked, layers)
    model: PreTrainedModel = masked
    return model


def _mask_hidden(masked: Any, scores: list[float], kept: int) -> None:
    """Nothing is written to the dropped dimensions, and the norms divide by the size of what is left.

    A norm over k of D dimensions is w·x/√(s/k + ε), with s the sum of squares. Over all D, of which
    the others are zero, w' = w·√(k/D) and ε' = ε·k/D give the same.
    """
    dropped = sorted(set(range(len(scores))) - set(best(scores, kept)))
    masked.model.embed_tokens.weight[:, dropped] = 0
    norms = [masked.model.norm]
    for layer in masked.model.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight[dropped] = 0
            if writer.bias is not None:
                writer.bias[dropped] = 0
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for norm in norms:
        norm.weight *= (kept / len(scores)) ** 0.5
        norm.variance_epsilon *= kept / len(scores)


def _drop_layers(masked: Any, kept: Sequence[int]) -> None:
    masked.model.layers = nn.ModuleList([masked.model.layers[number] for number in kept])
    for place, layer in enumerate(masked.model.layers):
        layer.self_attn.layer_idx = place
    masked.config.num_hidden_layers = len(kept)
    if (types := getattr(masked.config, "layer_types", None)) is not None:
        masked.config.layer_types = [types[number] for number in kept]
