"""The defaults for every size of teacher are ones that a run can work with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.settings.bracket_plan import plan_bracket, rungs_up_to
from search.settings.scale import SCALES, Scale, default_device, default_dtype, scale_for


def test_scales_are_in_ascending_order_and_cover_every_teacher() -> None:
    sizes = [scale.teacher_parameters for scale in SCALES]
    assert sizes == sorted(sizes)
    assert sizes[-1] == math.inf


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: f"{scale.teacher_parameters:.0e}")
def test_a_scale_is_consistent(scale: Scale) -> None:
    rungs = rungs_up_to(scale.first_rung_tokens, scale.retrain_tokens)
    assert rungs[0] >= 8 * scale.batch_blocks * scale.block, "short distillation is some steps"
    assert rungs[-1] < scale.retrain_tokens
    found = plan_bracket(scale.search_tokens, rungs, 10_000)
    assert found.rung_tokens == rungs[:2], "the order of candidates at one rung is seen at another"
    assert found.rung_candidates[-1] > scale.promote
    assert scale.promote >= 2


@given(st.integers(1, 10**13))
def test_a_teacher_gets_the_first_scale_that_is_large_enough(parameters: int) -> None:
    scale = scale_for(parameters)
    assert parameters <= scale.teacher_parameters
    assert all(parameters > smaller.teacher_parameters for smaller in SCALES[: SCALES.index(scale)])


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_is_taken(
    cuda: bool, mps: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert default_device() == device


@pytest.mark.parametrize(
    ("device", "fast", "parameters", "dtype"),
    [
        ("cuda", False, 10, "bfloat16"),
        ("cuda:1", False, 10**9, "bfloat16"),
        ("cpu", True, 1_000_000, "bfloat16"),
        ("cpu", True, 999_999, "float32"),
        ("cpu", False, 10**9, "float32"),
        ("mps", True, 10**9, "float32"),
    ],
)
def test_bfloat16_where_it_is_faster(
    device: str, fast: bool, parameters: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    assert default_dtype(device, parameters) == dtype
