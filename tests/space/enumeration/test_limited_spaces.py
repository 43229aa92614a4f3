"""Spaces in which a user keeps axes, or says what sizes they may have."""

from __future__ import annotations

import re

import numpy as np
import pytest

from space.axes.architecture import Architecture, Axis
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.enumeration.limits import read_limits
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError
from tests.space.maps import map_of


def test_the_space_of_the_first_minitron_paper() -> None:
    """arXiv 2407.14679, 4.3: 18 candidates within 5% of 4B, the published model among them."""
    limits = read_limits(
        ["kv_heads"],
        [
            "hidden=2560,3072,3584,4096,4608",
            "heads=24,32,48",
            "layers=29..32",
            "mlp=2.5x,3x,3.5x,4x",
        ],
    )
    space = enumerate_space(map_of("nemotron"), Budget(4_000_000_000, 0.05), limits)
    assert len(space) == 18
    assert space.solved is None
    assert Architecture(3072, 9216, 24, 8, 32) in list(space.architectures)
    for a in space.architectures:
        parameters = 2 * 256_000 * a.hidden + a.layers * (2 * a.hidden * a.heads * 128)
        parameters += a.layers * (2 * a.hidden * 8 * 128 + 2 * a.hidden * a.mlp)
        assert abs(parameters / 4e9 - 1) <= 0.05
        assert (a.kv_heads, a.mlp / a.hidden in (2.5, 3, 3.5, 4)) == (8, True)


class TestLimits:
    def space(self, keep: list[str], sizes: list[str], budget: int = 4 * 10**9) -> SearchSpace:
        return enumerate_space(map_of("llama"), Budget(budget, 0.02), read_limits(keep, sizes))

    def test_what_is_kept_is_the_teacher_s(self) -> None:
        space = self.space(["hidden", "kv_heads"], [])
        assert (space.values(Axis.HIDDEN), space.values(Axis.KV_HEADS)) == ([4096], [8])
        whole = enumerate_space(map_of("llama"), Budget(4 * 10**9, 0.02))
        kept = (whole.column(Axis.HIDDEN) == 4096) & (whole.column(Axis.KV_HEADS) == 8)
        assert np.array_equal(space.table, whole.table[kept])

    def test_lists_and_ranges_are_what_may_be_chosen(self) -> None:
        space = self.space([], ["hidden=3000..3400", "layers=28,30,32", "mlp=8192..10240"])
        assert space.values(Axis.HIDDEN) == [3072, 3200, 3328]
        assert set(space.values(Axis.LAYERS)) <= {28, 30, 32}
        assert min(space.values(Axis.MLP)) >= 8192
        assert max(space.values(Axis.MLP)) <= 10240
        assert space.solved is Axis.MLP

    def test_a_limit_goes_beyond_what_is_usual(self) -> None:
        """Without one, no axis goes below four tenths here."""
        space = self.space([], ["kv_heads=2", "heads=8"])
        assert (space.values(Axis.KV_HEADS), space.values(Axis.HEADS)) == ([2], [8])

    def test_multiples_that_are_not_whole_go_to_the_nearest_step(self) -> None:
        space = self.space([], ["mlp=3.3x"])
        for a in space.architectures:
            assert a.mlp % 128 == 0 or a.mlp == 3.3 * a.hidden
            assert abs(a.mlp - 3.3 * a.hidden) <= 64

    @pytest.mark.parametrize(
        ("keep", "sizes", "message"),
        [
            (
                [],
                ["hidden=2050..2100"],
                "Sizes of hidden are multiples of 128; --sizes hidden=2050..2100 holds none. Widen the "
                "range, or name sizes one by one: --sizes hidden=A,B,C.",
            ),
            (
                [],
                ["mlp=2050..2100"],
                "Sizes of mlp are multiples of 128; --sizes mlp=2050..2100 holds none. Widen the range, or "
                "name sizes one by one: --sizes mlp=A,B,C.",
            ),
            (
                ["kv_heads"],
                ["heads=20,24"],
                "The class LlamaConfig has to allow every size; --sizes heads=20,24 names 20, which goes "
                "with none of the sizes of the other axes. Leave 20 out, or widen the limits of the "
                "other axes.",
            ),
            (
                [],
                ["mlp=20x"],
                "Sizes have to lie within the teacher's; --sizes mlp=20x names 20x, and the teacher has "
                "14336. Name a smaller multiple.",
            ),
        ],
    )
    def test_a_limit_that_cannot_be_met_is_named(
        self, keep: list[str], sizes: list[str], message: str
    ) -> None:
        with pytest.raises(InputError) as refusal:
            self.space(keep, sizes)
        assert str(refusal.value) == message

    def test_the_limit_that_forbids_everything_is_named(self) -> None:
        """KV heads are few weights: to leave them free would not help."""
        limits = ["layers", "kv_heads"], ["hidden=4096", "mlp=12288..14336"]
        with pytest.raises(InputError) as refusal:
            self.space(*limits)
        text = str(refusal.value)
        named = "--keep layers or --sizes hidden=4096 or --sizes mlp=12288..14336 forbids them"
        assert f"for a teacher of 8,030,261,248; {named}; the nearest are" in text
        assert "as --budget, leave --keep layers out, widen --tolerance, or name a teacher" in text
        above = int(re.findall(r"the nearest are (\d+)", text)[0])
        assert above > 4 * 10**9
        assert len(self.space(*limits, above))
