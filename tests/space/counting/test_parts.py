"""Every parameter belongs to one part, whatever the class; the parts are those that a reader would name."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from space.counting.counting import parameter_polynomial, parameter_uses
from space.counting.parts import Part, Parts, parts_of
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.verification.contract import random_ranking
from tests.contracts.tiny import each, verified

#: By hand from the classes' own code: what the modules of a layer, starred, work for.
MODULES = {
    "llama-tied-biases": {"self_attn": Part.ATTENTION, "mlp": Part.MLP},
    "gpt2": {"attn": Part.ATTENTION, "mlp": Part.MLP},
    "opt": {"self_attn": Part.ATTENTION, "fc1": Part.MLP, "fc2": Part.MLP},
    "bloom": {"self_attention": Part.ATTENTION, "mlp": Part.MLP},
    "mixtral": {"self_attn": Part.ATTENTION, "mlp": Part.EXPERTS},
    "falcon_h1": {"self_attn": Part.ATTENTION, "feed_forward": Part.MLP, "mamba": Part.OTHER},
    "lfm2": {"self_attn": Part.ATTENTION, "feed_forward": Part.MLP, "conv": Part.OTHER},
}


def parts(case: str) -> tuple[PreTrainedModel, Parts]:
    found = verified(case)
    layers = range(found.small.teacher.layers)
    return found.model, parts_of(found.model, found.small, layers)


def counted(model: PreTrainedModel, found: Parts) -> Counter[Part]:
    counts: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        counts[found.parameters[name]] += parameter.numel()
    return counts


@pytest.mark.parametrize("case", each(*MODULES, "deepseek_v3", "nemotron_h"))
def test_parts_add_up_to_what_is_counted(case: str) -> None:
    model, found = parts(case)
    axis_map = verified(case).small
    counts = counted(model, found)
    assert counts.total() == parameter_polynomial(axis_map).of(axis_map.teacher)
    uses = parameter_uses(axis_map)
    sizes = dict(model.named_parameters())
    assert counts[Part.EMBEDDINGS] == sum(sizes[name].numel() for name in uses.tables)
    assert counts[Part.HEAD] == sum(sizes[name].numel() for name in uses.head - uses.tables)
    assert counts[Part.ATTENTION] > 0


@pytest.mark.parametrize("case", each(*MODULES))
def test_modules_work_for_the_part_that_their_class_says(case: str) -> None:
    _, found = parts(case)
    stack = verified(case).small.stacks[0]
    in_layers = {
        name.removeprefix(stack).partition(".")[2]: part
        for name, part in found.modules.items()
        if name.startswith(stack)
    }
    assert in_layers == MODULES[case]
    outside = {part for name, part in found.modules.items() if not name.startswith(stack)}
    assert outside == {Part.EMBEDDINGS, Part.HEAD}


def test_llama_is_counted_as_by_hand() -> None:
    model, found = parts("llama-tied-biases")
    config, counts = model.config, counted(model, found)
    hidden, layers, neurons = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    queries, keys = (
        number * config.head_dim for number in (config.num_attention_heads, config.num_key_value_heads)
    )
    assert counts == {
        Part.EMBEDDINGS: config.vocab_size * hidden,
        Part.ATTENTION: layers * ((hidden + 1) * (queries + 2 * keys) + (queries + 1) * hidden),
        Part.MLP: layers * (2 * (hidden + 1) * neurons + (neurons + 1) * hidden),
        Part.NORMS: (2 * layers + 1) * hidden,
    }


def test_experts_are_apart_from_shared_ones() -> None:
    _, found = parts("deepseek_v3")
    kinds = {re.sub(r"\d+", "*", name): part for name, part in found.parameters.items()}
    assert kinds["model.layers.*.mlp.experts.gate_up_proj"] is Part.EXPERTS
    assert kinds["model.layers.*.mlp.gate.weight"] is Part.EXPERTS
    assert kinds["model.layers.*.mlp.shared_experts.up_proj.weight"] is Part.MLP
    assert kinds["model.layers.*.self_attn.kv_a_layernorm.weight"] is Part.ATTENTION, "a norm within"
    assert kinds["model.layers.*.input_layernorm.weight"] is Part.NORMS


@pytest.mark.parametrize("case", each("lfm2", "mixtral"))
def test_a_student_has_the_parts_of_the_layers_that_it_keeps(case: str) -> None:
    found = verified(case)
    axis_map, ranking = found.small, random_ranking(found.small, 3)
    canonical = sort_by_importance(saved_tensors(found.model, axis_map), axis_map, ranking)
    kept = list(range(1, axis_map.teacher.layers))
    architecture = axis_map.complete({Axis.LAYERS: len(kept)})
    student = extract(canonical, axis_map, ranking, architecture, kept)
    teacher = parts(case)[1]
    mine = parts_of(student, axis_map, kept)
    stack = axis_map.stacks[0]
    for place, layer in enumerate(kept):
        own, whole = (
            {
                name.removeprefix(f"{stack}{number}."): part
                for name, part in some.parameters.items()
                if name.startswith(f"{stack}{number}.")
            }
            for some, number in ((mine, place), (teacher, layer))
        )
        assert own == whole
