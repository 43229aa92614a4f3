"""The rule of the forms, at sizes of real models, and what is said when a wish cannot be granted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.choice import TargetsSetting, choose_form, fits
from evaluators.distillation.targets.records import OVERHEAD
from space.input_error import InputError

GB, TB = 10**9, 10**12
#: Llama-3.1-8B to 4B on 100M tokens.
LLAMA = TargetsSetting(
    tokens=100_000_000,
    block=4096,
    vocabulary=128_256,
    width=4096,
    student=3_500_000_000,
    teacher=7_504_658_432,
    every_logit=False,
)
#: A student whose head is most of it.
SMALL = replace(LLAMA, student=200_000_000)
HIDDEN, SAMPLED, TOP_K, LIVE = FormName


def test_sizes_by_hand() -> None:
    records = 24_415 * OVERHEAD
    assert LLAMA.bytes_of(HIDDEN) == 100_000_000 * 2 * 4096 + records
    assert LLAMA.bytes_of(SAMPLED) == 100_000_000 * (50 * (4 + 1) + 1 + 4) + records
    assert LLAMA.bytes_of(TOP_K) == 100_000_000 * 12 * (4 + 2) + records
    assert LLAMA.bytes_of(LIVE) == 0
    assert replace(LLAMA, vocabulary=32_000).bytes_of(SAMPLED) == 100_000_000 * (50 * 3 + 5) + records
    assert replace(LLAMA, vocabulary=37).bytes_of(SAMPLED) == 100_000_000 * (37 * 3 + 5) + records
    assert replace(LLAMA, states=8192).bytes_of(HIDDEN) == 100_000_000 * 2 * (4096 + 8192) + records


def test_costs_of_a_step_by_hand() -> None:
    assert LLAMA.step_share(HIDDEN) == pytest.approx(2 * 4096 * 128_256 / (6 * 3.5e9))
    assert LLAMA.step_share(SAMPLED) == LLAMA.step_share(TOP_K) == 0
    assert LLAMA.step_share(LIVE) == pytest.approx(2 * 7_504_658_432 / (6 * 3.5e9))


@pytest.mark.parametrize(
    ("setting", "free", "form"),
    [
        (LLAMA, 2 * TB, HIDDEN),  # 0.82 TB, and the head is a twentieth of a step
        (LLAMA, 1 * TB, SAMPLED),  # more than half
        (LLAMA, 40 * GB, LIVE),
        (SMALL, 2 * TB, SAMPLED),  # the head is 0.88 of a step
        (SMALL, 40 * GB, LIVE),
        (replace(SMALL, every_logit=True), 2 * TB, HIDDEN),
        (replace(SMALL, states=4096), 4 * TB, HIDDEN),
        (replace(SMALL, states=4096), 2 * TB, LIVE),
        (replace(LLAMA, every_logit=True), 1 * TB, LIVE),
    ],
)
def test_the_rule(setting: TargetsSetting, free: int, form: FormName) -> None:
    assert choose_form("auto", setting, free) is form


def test_the_border_is_a_tenth_of_a_step() -> None:
    border = 2 * 4096 * 128_256 * 10 // 6
    assert choose_form("auto", replace(LLAMA, student=border + 1), 2 * TB) is HIDDEN
    assert choose_form("auto", replace(LLAMA, student=border - 1), 2 * TB) is SAMPLED


def test_the_border_is_half_of_what_is_free() -> None:
    size = LLAMA.bytes_of(HIDDEN)
    assert choose_form("auto", LLAMA, 2 * size) is HIDDEN
    assert choose_form("auto", LLAMA, 2 * size - 1) is SAMPLED


@given(
    tokens=st.integers(1, 10**12),
    block=st.integers(1, 8192),
    vocabulary=st.integers(2, 10**6),
    width=st.integers(1, 10**5),
    student=st.integers(1, 10**12),
    every_logit=st.booleans(),
    states=st.integers(0, 10**5),
    free=st.integers(0, 10**16),
)
def test_what_is_chosen_fits_and_is_enough_for_the_loss(free: int, **sizes: int) -> None:
    setting = TargetsSetting(**sizes, teacher=1)  # type: ignore[arg-type]
    form = choose_form("auto", setting, free)
    assert fits(form, setting, free)
    assert form is not TOP_K
    assert form is not SAMPLED or not (setting.every_logit or setting.states)


def refusal(wanted: str, setting: TargetsSetting, free: int) -> str:
    with pytest.raises(InputError) as error:
        choose_form(wanted, setting, free)
    return str(error.value)


def test_a_wish_is_granted_if_it_can_be() -> None:
    for form in FormName:
        assert choose_form(form.value, SMALL, 2 * TB) is form
    assert choose_form("live", LLAMA, 0) is LIVE


def test_a_wish_that_does_not_fit_is_refused() -> None:
    assert refusal("hidden", LLAMA, 1 * TB) == (
        "The teacher's targets may take half of the free disk; 100,000,000 tokens as hidden states need "
        "819 GB, and 1 TB are free. Make space, name another disk with --out, take fewer tokens, or "
        "take --targets live."
    )


@pytest.mark.parametrize("setting", [replace(LLAMA, every_logit=True), replace(LLAMA, states=4096)])
@pytest.mark.parametrize("wanted", ["sampled", "top-k"])
def test_a_form_that_holds_too_little_is_refused(wanted: str, setting: TargetsSetting) -> None:
    assert refusal(wanted, setting, 9 * TB) == (
        "A loss on all logits or on intermediate states needs targets that hold them; "
        f"--targets {wanted} holds a few tokens of each distribution. "
        "Leave --targets out, or take --loss forward-kl without --states."
    )
