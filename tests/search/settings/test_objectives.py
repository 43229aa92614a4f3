"""Names of objectives as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.settings.objectives import UNITS, parse_objectives
from space.input_error import InputError


@pytest.mark.parametrize(
    ("text", "objectives"),
    [
        ("loss", ("loss",)),
        ("loss,latency", ("loss", "latency")),
        (" latency , loss ,", ("latency", "loss")),
        ("loss,latency,parameters,memory,flops", tuple(UNITS)),
    ],
)
def test_names_with_commas(text: str, objectives: tuple[str, ...]) -> None:
    assert parse_objectives(text) == objectives


@pytest.mark.parametrize(
    ("text", "values", "remedy"),
    [
        ("loss,latencies", "'latencies' is none of them", "Did you mean 'latency'"),
        ("loss,speed", "'speed' is none of them", "Choose from these"),
        ("Loss", "'Loss' is none of them", "Did you mean 'loss'"),
        ("loss latency", "'loss latency' is none of them", "Did you mean 'latency'"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_near(text: str, values: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_objectives(text)
    assert caught.value.rule == "Objectives are loss, latency, parameters, memory, flops"
    assert (caught.value.values, caught.value.remedy) == (values, remedy)


@pytest.mark.parametrize("text", ["", ",", "latency", "loss,loss", "loss,latency,loss"])
def test_loss_has_to_be_there_and_nothing_twice(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_objectives(text)
    assert str(caught.value) == (
        f"Objectives have to name loss, and each objective once; {text!r} does not. "
        "Try --objectives loss,latency."
    )


@given(st.permutations(list(UNITS)), st.integers(1, 5))
def test_their_order_is_kept(names: list[str], count: int) -> None:
    chosen = [*names[:count]]
    if "loss" in chosen:
        assert parse_objectives(",".join(chosen)) == tuple(chosen)
