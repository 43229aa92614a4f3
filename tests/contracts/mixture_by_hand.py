"""A student of Mixtral built with no map: entries picked one by one from its modules' own names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from space.axes.architecture import Architecture, Axis
from space.cutting.ranking import Ranking
from tests.contracts.masked import best, kept_heads


@torch.no_grad()
def student_by_hand(
    teacher: Any, ranking: Ranking, sizes: Architecture, layers: Sequence[int]
) -> MixtralForCausalLM:
    """A student in which every kept unit stands where it stood among the kept ones."""
    config: MixtralConfig = type(teacher.config)(
        **teacher.config.to_dict()
        | {
            "hidden_size": sizes.hidden,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "num_hidden_layers": len(layers),
            "num_local_experts": sizes.experts,
            "intermediate_size": sizes.expert_mlp,
        }
    )
    student: Any = MixtralForCausalLM(config).eval()
    student.set_experts_implementation("eager")
    stream = sorted(best(ranking.scores[Axis.HIDDEN].tolist(), sizes.hidden))
    student.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight[:, stream])
    student.model.norm.weight.copy_(teacher.model.norm.weight[stream])
    student.lm_head.weight.copy_(teacher.lm_head.weight[:, stream])
    for new, number in zip(student.model.layers, layers, strict=True):
        old = teacher.model.layers[number]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(new, norm).weight.copy_(getattr(old, norm).weight[stream])
        _attention(new.self_attn, old.self_attn, ranking, sizes, number, stream)
        _experts(new.mlp, old.mlp, ranking, sizes, number, stream)
    model: MixtralForCausalLM = student
    return model


def _attention(
    new: Any, old: Any, ranking: Ranking, sizes: Architecture, layer: int, stream: list[int]
) -> None:
    scores, size = ranking.scores[Axis.HEADS][layer].tolist(), old.head_dim
    queries = sorted(kept_heads(scores, ranking.kv_heads, sizes))
    groups = sorted({head // (len(scores) // ranking.kv_heads) for head in queries})
    for name, heads in (("q_proj", queries), ("k_proj", groups), ("v_proj", groups)):
        rows = [head * size + entry for head in heads for entry in range(size)]
        getattr(new, name).weight.copy_(getattr(old, name).weight[rows][:, stream])
    columns = [head * size + entry for head in queries for entry in range(size)]
    new.o_proj.weight.copy_(old.o_proj.weight[stream][:, columns])


def _experts(
    new: Any, old: Any, ranking: Ranking, sizes: Architecture, layer: int, stream: list[int]
) -> None:
    experts = sorted(best(ranking.scores[Axis.EXPERTS][layer].tolist(), sizes.experts))
    new.gate.weight.copy_(old.gate.weight[experts][:, stream])
    for place, expert in enumerate(experts):
        neurons = sorted(best(ranking.scores[Axis.EXPERT_MLP][layer, expert].tolist(), sizes.expert_mlp))
        both: Tensor = old.experts.gate_up_proj[expert]
        ups = [old.experts.down_proj.shape[-1] + neuron for neuron in neurons]
        new.experts.gate_up_proj[place] = both[neurons + ups][:, stream]
        new.experts.down_proj[place] = old.experts.down_proj[expert][stream][:, neurons]
