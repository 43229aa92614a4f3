from __future__ import annotations

from fractions import Fraction

import pytest
from transformers import GPT2Config

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.enumeration.limits import Limit, check_limits, read_limits
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.space.maps import map_of, tiny_map


def test_what_can_be_said() -> None:
    found = read_limits(
        ["heads", "KV-heads"],
        ["hidden=2048..3584", "layers=32,28, 30", "mlp=4x,2.5x"],
    )
    assert found == {
        Axis.HEADS: Limit(Axis.HEADS, "--keep heads", keep=True),
        Axis.KV_HEADS: Limit(Axis.KV_HEADS, "--keep KV-heads", keep=True),
        Axis.HIDDEN: Limit(Axis.HIDDEN, "--sizes hidden=2048..3584", span=(2048, 3584)),
        Axis.LAYERS: Limit(Axis.LAYERS, "--sizes layers=32,28, 30", sizes=(28, 30, 32)),
        Axis.MLP: Limit(Axis.MLP, "--sizes mlp=4x,2.5x", times_hidden=(Fraction(5, 2), Fraction(4))),
    }


AXES = "Axes are hidden, mlp, heads, kv_heads, layers, experts, expert_mlp, shared_mlp, head_dim"
FORMS = "Write --sizes hidden=2048..3584 layers=28,30,32 mlp=3x,3.5x."


@pytest.mark.parametrize(
    ("keep", "sizes", "message"),
    [
        (["head"], [], f"{AXES}; 'head' is none of them. Did you mean 'heads'."),
        ([], ["hiden=5"], f"{AXES}; 'hiden' is none of them. Did you mean 'hidden'."),
        (["zzz"], [], f"{AXES}; 'zzz' is none of them. Choose from these."),
        ([], ["hidden"], f"--sizes takes axes with their sizes; 'hidden' names none. {FORMS}"),
        (
            ["heads"],
            ["heads=4"],
            "An axis can be limited once; --keep heads and --sizes heads=4 were given. Leave one out.",
        ),
        (
            [],
            ["mlp=9..4"],
            f"A range runs from small to large; --sizes mlp=9..4 does not. {FORMS}",
        ),
        (
            [],
            ["mlp=3x,128"],
            "Sizes are a range 2048..3584, whole numbers 28,30,32, or multiples of hidden 3x,3.5x; "
            f"--sizes mlp=3x,128 is neither. {FORMS}",
        ),
        (
            [],
            ["heads=2x"],
            f"Multiples of hidden are for mlp, expert_mlp, shared_mlp; --sizes heads=2x was given. {FORMS}",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(keep: list[str], sizes: list[str], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_limits(keep, sizes)
    assert str(refusal.value) == message


@pytest.fixture(scope="module")
def gpt2() -> AxisMap:
    return verified_axis_map(GPT2Config())


@pytest.mark.parametrize(
    ("keep", "sizes", "message"),
    [
        (
            ["experts"],
            [],
            "The axes of this teacher are hidden, mlp, heads, kv_heads, layers; --keep experts was given for "
            "a teacher of type 'llama'. Leave experts out.",
        ),
        (
            [],
            ["hidden=4096,8192"],
            "Sizes have to lie within the teacher's; --sizes hidden=4096,8192 names 8192, and the teacher "
            "has 4096. Name sizes from 1 to 4096.",
        ),
        (
            [],
            ["layers=0..8"],
            "Sizes have to lie within the teacher's; --sizes layers=0..8 names 0, and the teacher has 32. "
            "Name sizes from 1 to 32.",
        ),
    ],
)
def test_what_llama_does_not_have_is_refused(keep: list[str], sizes: list[str], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_limits(read_limits(keep, sizes), map_of("llama"))
    assert str(refusal.value) == message


def test_an_axis_that_follows_is_limited_by_what_it_follows(gpt2: AxisMap) -> None:
    with pytest.raises(InputError) as refusal:
        check_limits(read_limits(["heads"], []), gpt2)
    assert str(refusal.value) == (
        "In the type 'gpt2', heads follows hidden; --keep heads was given. Limit hidden instead."
    )


def test_an_axis_that_is_not_cut_may_be_kept_and_no_more() -> None:
    falcon = tiny_map("falcon")
    check_limits(read_limits(["kv_heads"], []), falcon)
    with pytest.raises(InputError) as refusal:
        check_limits(read_limits([], ["kv_heads=1"]), falcon)
    assert str(refusal.value) == (
        "In the type 'falcon', kv_heads stays as it is: all heads share one; --sizes kv_heads=1 was given. "
        "Leave kv_heads out."
    )


def test_experts_are_enough_for_routing() -> None:
    check_limits(read_limits([], ["experts=2,4,8"]), map_of("mixtral"))
    with pytest.raises(InputError) as refusal:
        check_limits(read_limits([], ["experts=1,8"]), map_of("mixtral"))
    assert str(refusal.value) == (
        "Routing needs at least 2 experts; --sizes experts=1,8 names 1. Name sizes from 2 to 8."
    )
