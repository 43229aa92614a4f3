"""What the user says about importance, as a method; what cannot be is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluators.importance.method import Aggregate, Depth, Method, Width
from search.settings.flags import Flags
from search.settings.methods import method_of
from search.settings.resolution import resolve
from search.stages.importance import smallest_architecture
from space.axes.architecture import Axis
from space.input_error import InputError
from tests.search.synthetic import run_config


def test_the_defaults_are_what_the_studies_found_best() -> None:
    flags = Flags()
    config = run_config(
        width_by=flags.width_by,
        aggregation=flags.aggregation,
        depth_by=flags.depth_by,
        rounds=flags.rounds,
        repair=flags.repair,
    )
    assert method_of(config) == Method(sequence=Aggregate.L2, depth=Depth.PERPLEXITY)


def test_every_choice_is_heard() -> None:
    config = run_config(
        width_by="taylor", aggregation="var,l2", depth_by="greedy-perplexity", rounds=3, seed=7
    )
    assert method_of(config) == Method(
        width=Width.TAYLOR,
        batch=Aggregate.VAR,
        sequence=Aggregate.L2,
        depth=Depth.PERPLEXITY,
        greedy=True,
        rounds=3,
        seed=7,
    )
    for depth in Depth:
        if depth not in (Depth.BENCHMARK, Depth.BLOCK_BENCHMARK):  # these name a task
            assert method_of(run_config(depth_by=depth.value)).depth is depth


@pytest.mark.parametrize("text", ["l2", "l2,mean,var", "max,mean", ""])
def test_an_aggregation_is_two_of_three(text: str) -> None:
    with pytest.raises(InputError) as caught:
        method_of(run_config(aggregation=text))
    assert str(caught.value) == (
        "--aggregation takes how absolute activations are put together along batch and sequence; "
        f"{text!r} was given. Write two of mean, l2 and var, such as --aggregation l2,mean."
    )


def test_any_other_name_is_a_benchmark_and_needs_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in ("winogrande", "greedy-random"):
        with pytest.raises(InputError, match=r"Install it: pip install 'lm-eval"):
            method_of(run_config(depth_by=name))


def test_it_is_refused_before_any_work(demo_config: Path) -> None:
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu")
    with pytest.raises(InputError, match="--aggregation takes"):
        resolve(replace(flags, aggregation="loud"))


def test_least_squares_are_the_default_where_they_are_cheap(demo_config: Path, llama_8b: Path) -> None:
    def repair(model: Path, budget: str, *names: Any) -> tuple[str, ...]:
        flags = Flags(budget=budget, model=(str(model),), device="cpu", basis="coordinate", repair=names)
        return resolve(flags).config.repair

    assert repair(demo_config, "1M") == ("least-squares",)
    assert repair(demo_config, "1M", "none") == ()
    assert repair(demo_config, "1M", "norm-scale", "head-residual") == ("norm-scale", "head-residual")
    assert repair(llama_8b, "4B") == (), "its down projections alone would take 53 GB"


def test_rounds_lead_to_the_least_of_every_axis(demo_config: Path) -> None:
    run = resolve(Flags(budget="1M", model=(str(demo_config),), device="cpu", basis="coordinate"))
    least = smallest_architecture(run.space, run.axis_map)
    for axis in run.axis_map.free:
        if axis is not Axis.HEADS:
            assert least[axis] == min(architecture[axis] for architecture in run.space.architectures)
    assert least.heads % least.kv_heads == 0
