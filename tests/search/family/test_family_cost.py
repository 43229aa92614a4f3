"""What a family costs: the published saving, and counts by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.family.cost import FamilyCost, StageCost, family_saving, family_table, stage_cost
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages.preparation import basis_candidates
from space.axes.architecture import Architecture

#: All but the embedding table and the norms.
DEMO_MATRICES = 1_837_184 - 1024 * 128 - 17 * 128


def test_the_published_saving() -> None:
    """arXiv 2407.14679: 15B, 8B and 4B, the smaller two on a fortieth of the tokens, cost 1.8 times less.

    A step of the three takes 4.4, 2.5 and 1.2 × 10^17 operations: (4.4 + 2.5 + 1.2) / (4.4 + 3.7 / 40).
    """
    weights, tokens = (4.4e17, 2.5e17, 1.2e17), 1.0
    short = 6 * sum(weights[1:]) * tokens / 40
    assert family_saving(weights, tokens, short) == pytest.approx(1.803, abs=5e-4)


def test_the_published_saving_from_the_published_sizes() -> None:
    """By their parameters (15.63B, 8.27B, 4.19B) on 94B tokens of 8T, what teaching takes is seen too."""
    weights, tokens = (15.63e9, 8.27e9, 4.19e9), 8e12
    students = sum(6 * one * 94e9 for one in weights[1:])
    teaching = 2 * 2 * weights[0] * 94e9
    assert family_saving(weights, tokens, students) == pytest.approx(1.78, abs=0.01)
    assert family_saving(weights, tokens, students + teaching) == pytest.approx(1.77, abs=0.01)


@given(
    st.lists(st.floats(1e3, 1e12), min_size=1, max_size=5),
    st.floats(1e6, 1e13),
    st.floats(0, 1e30),
    st.floats(1.01, 10),
)
def test_a_family_that_is_free_saves_all_but_its_original(
    weights: list[float], tokens: float, flops: float, more: float
) -> None:
    free = family_saving(weights, tokens, 0)
    assert free == pytest.approx(sum(weights) / weights[0])
    assert family_saving(weights, tokens, flops) <= free * (1 + 1e-12)
    assert family_saving([more * one for one in weights], tokens, more * flops) == pytest.approx(
        family_saving(weights, tokens, flops)
    ), "a ratio knows no unit"


@cache
def _resolved(demo_config: Path) -> Resolved:
    return resolve(Flags(budget="1M", model=(str(demo_config),), device="cpu"))


@pytest.fixture
def resolved(demo_config: Path) -> Resolved:
    return _resolved(demo_config)


def matrices(a: Architecture) -> int:
    """What a token is multiplied with in a student of the demo teacher, its head tied or not."""
    attention = 2 * a.hidden * 16 * (a.heads + a.kv_heads)
    return a.layers * (attention + 3 * a.hidden * a.mlp) + 1024 * a.hidden


def summary_of(resolved: Resolved, chosen: Architecture, **changes: Any) -> dict[str, Any]:
    """So much of a summary as the cost reads: two trials at rung 1, one model retrained, one that failed."""
    other = resolved.space.architectures[0]

    def row(architecture: Architecture, tokens: int, **others: Any) -> dict[str, Any]:
        sizes = {**architecture.sizes(), "kept_layers": list(range(architecture.layers))}
        return {"label": architecture.label, "architecture": sizes, "tokens": tokens, **others}

    loss = {"parameters": resolved.space.parameters_of(chosen), "loss": 2.5, "path": "models/01"}
    return {
        "name": "demo/1M",
        "teacher": {"id": "demo"},
        "basis": {"name": "coordinate", "tried": []},
        "corpus": {"id": "stdlib", "block": 128, "validation_tokens": 512},
        "distillation": {
            "targets": {
                "short_distillation": {"form": "hidden", "tokens": 4000, "bytes": 10},
                "retraining": {"form": "hidden", "tokens": 4000, "bytes": 10},
            }
        },
        "trials": [row(chosen, 0), row(other, 0), row(chosen, 1000), row(other, 1000)],
        "promoted": [row(chosen, 3000, **loss)],
        "baselines": [row(other, 0, parameters=1, loss=None, path=None)],
        "chosen": {"label": chosen.label, "reason": ""},
        "tokens": {
            "teacher_correction": 0,
            "targets": 4000,
            "short_distillation": 2000,
            "retraining": 3000,
        },
    } | changes


def test_a_run_is_counted_by_hand(resolved: Resolved) -> None:
    chosen = resolved.space.architectures[-1]
    other = resolved.space.architectures[0]
    cost = stage_cost(resolved, summary_of(resolved, chosen))
    assert cost.students_flops == 6 * (1000 * (matrices(chosen) + matrices(other)) + 3000 * matrices(chosen))
    assert (cost.search_tokens, cost.retraining_tokens, cost.read_tokens) == (2000, 3000, 4000)
    assert (cost.reading_weights, cost.correction_flops) == (DEMO_MATRICES, 0)
    assert cost.flops == cost.students_flops + 2 * 4000 * DEMO_MATRICES
    assert cost.matrix_weights == matrices(chosen)
    assert (cost.loss, cost.model, cost.teacher, cost.taught_by) == (2.5, "models/01", "demo", "demo")


def test_the_trial_of_the_bases_counts_and_the_basis_decides_the_map(resolved: Resolved) -> None:
    assert resolved.turned is not None
    tried = [{"basis": one.basis, "origin": one.origin, "tokens": 500} for one in basis_candidates(resolved)]
    chosen = resolved.turned.space.architectures[0]
    about = summary_of(resolved, chosen, basis={"name": "weighted", "tried": tried})
    about["trials"] = about["trials"][:1]
    about["tokens"]["short_distillation"] = 500 * len(tried)
    cost = stage_cost(resolved, about)
    spent = sum(500 * matrices(one.architecture) for one in basis_candidates(resolved))
    assert {one["basis"] for one in tried} == {"coordinate", "weighted"}
    assert cost.students_flops == 6 * (spent + 3000 * matrices(chosen))


def test_what_branches_spare_is_not_counted(resolved: Resolved) -> None:
    chosen = resolved.space.architectures[0]
    about = summary_of(resolved, chosen)
    about["tokens"]["short_distillation"] = 1500
    assert stage_cost(resolved, about).students_flops == 6 * (1500 + 3000) * matrices(chosen)


@pytest.mark.parametrize(
    ("short", "long", "cached", "read"),
    [("hidden", "hidden", 4000, 4000), ("hidden", "live", 2000, 5000), ("live", "live", 0, 5000)],
)
def test_what_a_live_teacher_reads_counts_each_time(
    short: str, long: str, cached: int, read: int, resolved: Resolved
) -> None:
    about = summary_of(resolved, resolved.space.architectures[0])
    targets = about["distillation"]["targets"]
    targets["short_distillation"]["form"], targets["retraining"]["form"] = short, long
    about["tokens"]["targets"] = cached
    assert stage_cost(resolved, about).read_tokens == read


def test_another_that_teaches_is_counted_at_its_own_size(resolved: Resolved, qwen3_8b: Path) -> None:
    large = resolve(Flags(budget="4B", model=(str(qwen3_8b),), device="cpu", basis="coordinate"))
    taught = resolved.with_config(large.axis_map, taught_by="large")
    cost = stage_cost(taught, summary_of(resolved, resolved.space.architectures[0]))
    assert cost.taught_by == "large"
    assert cost.reading_weights == 8_190_735_360 - 151_936 * 4096 - (2 * 36 + 1) * 4096 - 36 * 2 * 128


STAGE = StageCost(
    name="demo/1M",
    teacher="demo",
    taught_by="demo",
    model="models/01",
    parameters=1_000_000,
    loss=2.5,
    validation="512 tokens of stdlib in blocks of 128",
    matrix_weights=900_000,
    search_tokens=20_000,
    retraining_tokens=30_000,
    read_tokens=4_000,
    students_flops=6 * 50_000 * 900_000,
    correction_flops=10,
    reading_weights=500_000,
)
FAMILY = FamilyCost("demo", "demo", 1_700_000, "previous", (STAGE, replace(STAGE, name="demo/500k")), 10**7)


def test_separate_searches_are_taught_by_the_original() -> None:
    assert STAGE.flops == 6 * 50_000 * 900_000 + 10 + 2 * 4000 * 500_000
    assert FAMILY.separate(STAGE) - STAGE.flops == 2 * 4000 * (1_700_000 - 500_000)
    assert FAMILY.scratch(STAGE) == 6 * 900_000 * 10**7


def test_the_table_says_what_is_measured_and_what_is_arithmetic() -> None:
    lines = family_table(FAMILY).splitlines()
    assert lines[1].split() == [
        *("run", "parameters", "loss", "search", "retraining", "FLOPs", "separately", "random", "weights"),
    ]
    assert lines[2].split() == [
        *("demo/1M", "1,000,000", "2.5000", "20k", "30k", "2.74e+11", "2.84e+11", "5.40e+13")
    ]
    assert lines[4].split() == ["together", "40k", "60k", "5.48e+11", "5.67e+11", "1.08e+14"]
    assert any(line.startswith("Measured: parameters, losses") for line in lines)
    assert any(line.startswith("Arithmetic: FLOPs, 6 a weight and token") for line in lines)
    # (1.7 + 0.9 + 0.9) × 6e13 against 1.7 × 6e13 + 5.48e11
    assert lines[-1].endswith("10M tokens of demo. With its own training on both sides, that costs "
                              "2.05 times what the family cost.")  # fmt: skip


def test_unknown_tokens_of_the_original_leave_the_column_out() -> None:
    unknown = replace(FAMILY, teacher_tokens=None)
    lines = family_table(unknown).splitlines()
    assert [line.split()[-1] for line in lines[2:5]] == ["–"] * 3
    assert "--teacher-tokens says them" in lines[-1]
    told = unknown.as_dict()
    assert (told["saving"], told["stages"][0]["random_weights_flops"]) == (None, None)
    assert FAMILY.as_dict()["saving"] == pytest.approx(3.5 * 6e13 / (1.7 * 6e13 + FAMILY.flops))


def test_losses_of_other_texts_are_told_apart() -> None:
    other = replace(FAMILY, stages=(STAGE, replace(STAGE, name="small", validation="another text")))
    assert family_table(other).splitlines()[-1] == (
        "The losses are not of the same text: demo/1M: 512 tokens of stdlib in blocks of 128; small: another "
        "text."
    )
    assert "same text" not in family_table(FAMILY)
