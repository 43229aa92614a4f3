"""Bounds as people type them, and the part of a space that they leave, against brute force."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.metrics.latency import Workload
from search.settings.costs import Costs, within_bounds, workload_of
from search.settings.objectives import (
    amount_as_typed,
    bounds_in_words,
    bounds_of_config,
    excess_over,
    objectives_of,
    read_bounds,
)
from space.axes.architecture import Axis
from space.counting.counting import cache_polynomial, decode_flops, parameter_polynomial
from space.input_error import InputError
from tests.search.synthetic import demo_map, demo_space
from tests.space.maps import tiny_map

COSTS = Costs(demo_map(), Workload(batch=2), 4)


@pytest.mark.parametrize(
    ("text", "name", "amount"),
    [
        ("latency=20ms", "latency", 20.0),
        ("latency=0.02s", "latency", 20.0),
        (" Latency = 20 MS ", "latency", 20.0),
        ("latency=20", "latency", 20.0),
        ("memory=8GB", "memory", 8e9),
        ("memory=1.5GiB", "memory", 1.5 * 2**30),
        ("memory=64kB", "memory", 64e3),
        ("memory=4096", "memory", 4096.0),
        ("parameters=350M", "parameters", 350e6),
        ("parameters=800k", "parameters", 800e3),
        ("flops=8B", "flops", 8e9),
        ("flops=1.2T", "flops", 1.2e12),
    ],
)
def test_each_objective_has_its_units(text: str, name: str, amount: float) -> None:
    assert read_bounds([text]) == {name: pytest.approx(amount, rel=1e-12)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["latency=20GB"],
            "A bound on latency is a positive number (units ms, s); --max latency=20GB was given. "
            "Write latency=20ms or 0.5s.",
        ),
        (["memory=8G"], "A bound on memory is a positive number (units kB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
        (["memory=8B"], "--max memory=8B was given"),
        (["flops=8GB"], "A bound on flops is a positive number (units k, M, B, T)"),
        (["latency=0ms"], "--max latency=0ms was given"),
        (["latency=-1ms"], "--max latency=-1ms was given"),
        (["latency=50%"], "--max latency=50% was given"),
        (["latency"], "--max latency was given"),
        (["latensy=20ms"], "'latensy=20ms' names none of them. Did you mean 'latency'"),
        (["loss=2"], "The loss is made small and has no bound"),
        (["memory=8GB", "memory=9GB"], "An objective has one bound; two of memory were given"),
    ],
)
def test_what_is_no_bound_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_bounds(texts)
    assert message in str(caught.value)


def test_bounds_are_saved_alike_however_they_were_typed() -> None:
    one, other = read_bounds(["memory=8GB", "latency=20ms"]), read_bounds(["latency=0.02s", "memory=8000MB"])
    assert bounds_of_config(one) == bounds_of_config(other) == ("latency=20.0", "memory=8000000000.0")
    assert read_bounds(bounds_of_config(one)) == one
    assert bounds_in_words(read_bounds(bounds_of_config(one))) == "latency ≤ 20 ms, memory ≤ 8GB"


@given(st.sampled_from(["latency", "parameters", "memory", "flops"]), st.floats(1.0, 1e13))
def test_a_bound_that_is_proposed_would_do_and_is_near(name: str, amount: float) -> None:
    amount = amount if name == "latency" else float(round(amount))
    found = read_bounds([amount_as_typed(name, amount)])[name]
    assert amount * (1 - 1e-9) <= found <= amount * 1.011 + 1


@pytest.mark.parametrize(
    ("text", "bounded", "objectives"),
    [
        (None, (), ("loss", "latency")),
        (None, ("latency",), ("loss",)),
        (None, ("memory",), ("loss", "latency")),
        ("loss,latency", ("latency",), ("loss", "latency")),
        ("loss,flops", ("latency",), ("loss", "flops")),
    ],
)
def test_what_is_bounded_is_made_small_only_if_it_is_named(
    text: str | None, bounded: tuple[str, ...], objectives: tuple[str, ...]
) -> None:
    assert objectives_of(text, bounded) == objectives


def test_over_is_by_how_much() -> None:
    assert excess_over({"loss": 9.0, "latency": 23.0, "memory": 5.0}, {"latency": 20.0, "memory": 5.0}) == {
        "latency": 3.0
    }
    assert excess_over({"loss": 9.0}, {"latency": 20.0}) == {}


@cache
def closed_forms() -> list[dict[str, int]]:
    """Of each architecture, each polynomial on its own, with Python's whole numbers."""
    context = 128 + 32
    parameters, cached = parameter_polynomial(demo_map()), cache_polynomial(demo_map(), context)
    flops = decode_flops(demo_map(), context)
    return [
        {
            "parameters": parameters.of(one),
            "memory": 4 * (parameters.of(one) + 2 * cached.of(one)),
            "flops": flops.of(one),
        }
        for one in demo_space().architectures
    ]


def test_costs_are_the_closed_forms() -> None:
    space = demo_space()
    table = COSTS.table(space.table)
    for row, expected in enumerate(closed_forms()):
        assert {name: int(amounts[row]) for name, amounts in table.items()} == expected
    for row in (0, 20, 68):
        one = space.architectures[row]
        assert COSTS.of(one, range(one.layers)) == closed_forms()[row]


@pytest.mark.parametrize("name", ["parameters", "memory", "flops"])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 1.0])
def test_a_bound_leaves_what_brute_force_leaves(name: str, quantile: float) -> None:
    space = demo_space()
    amounts = sorted(costs[name] for costs in closed_forms())
    most = amounts[int(quantile * (len(amounts) - 1))]
    left = within_bounds(space, COSTS, {name: most, "latency": 0.001})
    both = zip(space.architectures, closed_forms(), strict=True)
    expected = [one for one, costs in both if costs[name] <= most]
    assert left.architectures[:] == expected
    assert left.parameters.tolist() == [space.parameters_of(one) for one in expected]
    assert 1 <= len(left) <= len(space)


def test_a_bound_on_what_is_measured_leaves_the_space_as_it_is() -> None:
    assert within_bounds(demo_space(), COSTS, {"latency": 0.001}) is demo_space()


def test_bounds_that_leave_nothing_name_the_nearest_that_would_do() -> None:
    space = demo_space()
    with pytest.raises(InputError) as caught:
        within_bounds(space, COSTS, {"memory": 1e6, "flops": 1e12})
    error = caught.value
    assert error.rule == "At least one architecture has to lie within the bounds"
    outside = "all 69 architectures within 1,000,000 parameters ±2% lie outside memory ≤ 1MB"
    assert error.values.startswith(outside)
    proposed = read_bounds([error.remedy.removeprefix("Allow --max ").partition(",")[0]])
    assert 1 <= len(within_bounds(space, COSTS, proposed)) < len(space)


def test_where_windows_differ_it_matters_which_layers_are_kept() -> None:
    """Gemma's windows alternate: the cache is known once it is known which layers stay."""
    axis_map = tiny_map("gemma3_text")
    costs = Costs(axis_map, Workload(prompt=8000, answer=1000), 2)
    teacher = axis_map.teacher
    table = np.array([[teacher[axis] for axis in Axis]])
    assert COSTS.follow_from_sizes
    if costs.follow_from_sizes:
        pytest.skip("the tiny model has one window")
    assert costs.table(table).keys() == {"parameters"}
    found = costs.table(table, lambda one: range(one.layers))
    assert {name: float(amounts[0]) for name, amounts in found.items()} == costs.of(
        teacher, range(teacher.layers)
    )


def test_each_device_has_its_workload() -> None:
    assert workload_of("cpu") == Workload()
    assert workload_of("cuda:1").prompt == 1024
    assert workload_of("meta") == Workload()
