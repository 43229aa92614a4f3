from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from space.axes.architecture import Architecture, Axis
from space.cutting.basis import Basis
from space.cutting.ranking import Ranking, descending
from tests.contracts.draws import seeds
from tests.contracts.masked import best, kept_heads

TEACHER = Architecture(hidden=12, mlp=10, heads=6, kv_heads=3, layers=5, experts=4, expert_mlp=3)


def random_ranking(seed: int) -> Ranking:
    """Of a teacher of those sizes, with four experts in two groups."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[Axis, tuple[int, ...]] = {
        Axis.HIDDEN: (12,),
        Axis.LAYERS: (5,),
        Axis.MLP: (5, 10),
        Axis.HEADS: (5, 6),
        Axis.EXPERTS: (5, 4),
        Axis.EXPERT_MLP: (5, 4, 3),
    }
    scores = {axis: torch.randint(0, 9, shape, generator=generator).float() for axis, shape in shapes.items()}
    return Ranking(scores, 3, "random", str(seed), expert_groups=2)


@given(st.lists(st.integers(0, 3), min_size=1))
def test_the_highest_comes_first_and_ties_keep_their_order(scores: list[int]) -> None:
    assert descending(torch.tensor(scores).float()).tolist() == best(scores, len(scores))


class TestOrders:
    @given(seeds)
    def test_each_is_a_permutation_from_best_to_worst(self, seed: int) -> None:
        ranking = random_ranking(seed)
        assert ranking.orders[Axis.HIDDEN].tolist() == best(ranking.scores[Axis.HIDDEN].tolist(), 12)
        for layer in range(TEACHER.layers):
            neurons = ranking.scores[Axis.MLP][layer].tolist()
            assert ranking.orders[Axis.MLP][layer].tolist() == best(neurons, 10)

    @given(seeds)
    def test_of_one_layer_group_or_expert(self, seed: int) -> None:
        ranking = random_ranking(seed)
        assert torch.equal(ranking.order(Axis.HIDDEN, None), ranking.orders[Axis.HIDDEN])
        assert torch.equal(ranking.order(Axis.HIDDEN, 2), ranking.orders[Axis.HIDDEN])
        assert torch.equal(ranking.order(Axis.MLP, 2), ranking.orders[Axis.MLP][2])
        assert torch.equal(ranking.order(Axis.KV_HEADS, 2), ranking.orders[Axis.KV_HEADS][2])
        scores = ranking.scores
        experts, neurons = scores[Axis.EXPERTS][3].tolist(), scores[Axis.EXPERT_MLP][3, 2].tolist()
        assert ranking.order(Axis.EXPERTS, 3, 1).tolist() == best(experts[2:], 2)
        assert ranking.order(Axis.EXPERT_MLP, 3, 2).tolist() == best(neurons, 3)
        assert ranking.order(Axis.HEADS, 1, 2).tolist() == best(scores[Axis.HEADS][1, 4:].tolist(), 2)

    def test_layers_have_units_of_their_own(self) -> None:
        with pytest.raises(AssertionError, match="mlp lies within the layers"):
            random_ranking(0).order(Axis.MLP, None)

    @given(seeds)
    def test_a_group_counts_as_much_as_its_heads(self, seed: int) -> None:
        ranking = random_ranking(seed)
        for layer, scores in enumerate(ranking.scores[Axis.HEADS].tolist()):
            sums = [scores[0] + scores[1], scores[2] + scores[3], scores[4] + scores[5]]
            assert ranking.orders[Axis.KV_HEADS][layer].tolist() == best(sums, 3)

    @given(seeds, st.integers(1, 3), st.integers(1, 2))
    def test_a_prefix_of_the_heads_is_the_best_of_the_best_groups(
        self, seed: int, kv_heads: int, each: int
    ) -> None:
        ranking = random_ranking(seed)
        student = dataclasses.replace(TEACHER, heads=kv_heads * each, kv_heads=kv_heads)
        for layer, scores in enumerate(ranking.scores[Axis.HEADS].tolist()):
            groups = ranking.order(Axis.KV_HEADS, layer)[:kv_heads].tolist()
            heads = {
                2 * group + head
                for group in groups
                for head in ranking.order(Axis.HEADS, layer, group)[:each].tolist()
            }
            assert heads == kept_heads(scores, 3, student)


def test_the_report_is_shown_profiles_of_all_but_the_layers() -> None:
    ranking = Ranking(
        {
            Axis.HIDDEN: torch.tensor([1.0, 3.0, 2.0]),
            Axis.MLP: torch.tensor([[1.0, 2.0], [4.0, 3.0]]),
            Axis.LAYERS: torch.tensor([0.25, 0.5]),
        },
        kv_heads=1,
        method="by hand",
        fingerprint="f",
    )
    shown = ranking.profiles()
    assert shown.keys() == {"hidden", "mlp"}
    assert shown["hidden"].scores == ((3, 2, 1),)
    assert shown["mlp"].scores == ((2, 1), (4, 3))
    assert shown["mlp"].energy == ((0, 0.8, 1), (0, 0.64, 1))
    basis = Basis(torch.eye(3), torch.tensor([1.0, 1.5, 0.5]))
    turned = dataclasses.replace(ranking, basis=basis).profiles()["hidden"]
    assert turned.energy == ((0, 0.3333, 0.8333, 1),), "directions stay in the order of the basis"


class TestFile:
    @pytest.fixture
    def ranking(self) -> Ranking:
        return random_ranking(0)

    @pytest.fixture
    def path(self, ranking: Ranking, tmp_path: Path) -> Path:
        ranking.save(tmp_path / "ranking.safetensors")
        return tmp_path / "ranking.safetensors"

    def test_it_is_read_as_it_was_saved(self, ranking: Ranking, path: Path) -> None:
        again = Ranking.load(path, ranking.fingerprint)
        assert again is not None
        for field in ("kv_heads", "method", "fingerprint", "expert_groups"):
            assert getattr(again, field) == getattr(ranking, field)
        assert again.scores.keys() == ranking.scores.keys()
        for axis, scores in ranking.scores.items():
            assert torch.equal(again.scores[axis], scores)
            assert axis is Axis.LAYERS or torch.equal(again.orders[axis], ranking.orders[axis])

    def test_it_holds_the_orders_for_others_to_read(self, ranking: Ranking, path: Path) -> None:
        tensors = load_file(path)
        for axis in (Axis.HIDDEN, Axis.MLP, Axis.KV_HEADS, Axis.HEADS, Axis.EXPERTS, Axis.EXPERT_MLP):
            assert torch.equal(tensors[f"order.{axis}"], ranking.orders[axis])
        assert torch.equal(tensors["order.layers"], descending(ranking.scores[Axis.LAYERS]))

    def test_it_says_how_it_was_made_and_of_what(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["slimsearch"])
        assert about == {"kv_heads": 3, "method": "random", "fingerprint": "0", "expert_groups": 2}

    def test_nothing_else_is_left_beside_it(self, path: Path) -> None:
        assert list(path.parent.iterdir()) == [path]

    def test_a_new_one_takes_the_place_of_the_old(self, path: Path) -> None:
        other = random_ranking(1)
        other.save(path)
        assert Ranking.load(path, "0") is None
        again = Ranking.load(path, "1")
        assert again is not None
        assert torch.equal(again.scores[Axis.HIDDEN], other.scores[Axis.HIDDEN])

    def test_another_s_is_none(self, path: Path) -> None:
        assert Ranking.load(path, "of another teacher") is None

    def test_no_file_is_none(self, path: Path) -> None:
        assert Ranking.load(path.with_name("absent.safetensors"), "0") is None
        assert Ranking.load(path.parent, "0") is None

    def test_a_torn_file_is_none(self, path: Path) -> None:
        whole = path.read_bytes()
        with safe_open(path, "pt") as file:
            header = len(whole) - sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
        for length in (
            0,
            1,
            7,
            8,
            9,
            header // 2,
            header - 1,
            header,
            header + 1,
            len(whole) // 2,
            len(whole) - 1,
        ):
            path.write_bytes(whole[:length])
            assert Ranking.load(path, "0") is None, f"cut after {length} of {len(whole)} bytes"
        path.write_bytes(whole)
        assert Ranking.load(path, "0") is not None

    @pytest.mark.parametrize("content", [b"\0" * 500, b"not a ranking at all" * 20])
    def test_something_else_is_none(self, content: bytes, path: Path) -> None:
        path.write_bytes(content)
        assert Ranking.load(path, "0") is None

    def test_tensors_of_something_else_are_none(self, path: Path) -> None:
        save_file({"weight": torch.zeros(3)}, path)
        assert Ranking.load(path, "0") is None
