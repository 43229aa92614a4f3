from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from space.architecture import Architecture
from space.ranking import Ranking, descending
from tests.contracts.draws import random_ranking, seeds
from tests.contracts.masked import best, kept_heads

TEACHER = Architecture(hidden=12, mlp=10, heads=6, kv_heads=3, layers=5)


@given(st.lists(st.integers(0, 3), min_size=1))
def test_the_highest_comes_first_and_ties_keep_their_order(scores: list[int]) -> None:
    assert descending(torch.tensor(scores).float()).tolist() == best(scores, len(scores))


class TestOrders:
    @given(seeds)
    def test_each_is_a_permutation_from_best_to_worst(self, seed: int) -> None:
        ranking = random_ranking(TEACHER, seed)
        assert ranking.hidden_order.tolist() == best(ranking.hidden.tolist(), 12)
        for layer in range(TEACHER.layers):
            assert ranking.mlp_order[layer].tolist() == best(ranking.mlp[layer].tolist(), 10)

    @given(seeds)
    def test_a_group_counts_as_much_as_its_heads(self, seed: int) -> None:
        ranking = random_ranking(TEACHER, seed)
        for layer, scores in enumerate(ranking.heads.tolist()):
            sums = [scores[0] + scores[1], scores[2] + scores[3], scores[4] + scores[5]]
            assert ranking.groups[layer].tolist() == sums
            assert ranking.group_order[layer].tolist() == best(sums, 3)

    @given(seeds)
    def test_heads_stay_with_their_group(self, seed: int) -> None:
        ranking = random_ranking(TEACHER, seed)
        assert ranking.head_order.shape == (5, 3, 2)
        for groups, order, scores in zip(
            ranking.head_order.tolist(), ranking.group_order.tolist(), ranking.heads.tolist(), strict=True
        ):
            assert sorted(itertools.chain(*groups)) == list(range(6))
            assert [{head // 2 for head in group} for group in groups] == [{number} for number in order]
            assert all(scores[first] >= scores[second] for first, second in groups)

    @given(seeds, st.integers(1, 3), st.integers(1, 2))
    def test_a_prefix_of_the_heads_is_the_best_of_the_best_groups(
        self, seed: int, kv_heads: int, each: int
    ) -> None:
        ranking = random_ranking(TEACHER, seed)
        student = dataclasses.replace(TEACHER, heads=kv_heads * each, kv_heads=kv_heads)
        for order, scores in zip(ranking.head_order, ranking.heads.tolist(), strict=True):
            assert set(order[:kv_heads, :each].flatten().tolist()) == kept_heads(scores, 3, student)

    @given(seeds)
    def test_layers_are_kept_in_the_teacher_s_order(self, seed: int) -> None:
        ranking = random_ranking(TEACHER, seed)
        for layers in range(1, 6):
            assert ranking.kept_layers(layers) == sorted(best(ranking.layers.tolist(), layers))
        assert ranking.kept_layers(5) == [0, 1, 2, 3, 4]


def test_the_report_is_shown_sorted_scores() -> None:
    ranking = Ranking(
        hidden=torch.tensor([1.0, 3.0, 2.0]),
        mlp=torch.tensor([[1.0, 2.0], [4.0, 3.0]]),
        heads=torch.tensor([[5.0], [6.0]]),
        layers=torch.tensor([0.25, 0.5]),
        kv_heads=1,
        method="by hand",
        fingerprint="f",
    )
    assert ranking.shown() == {
        "hidden": [3, 2, 1],
        "mlp layer 0": [2, 1],
        "mlp layer 1": [4, 3],
        "heads layer 0": [5],
        "heads layer 1": [6],
        "layers": [0.25, 0.5],
    }


class TestFile:
    @pytest.fixture
    def ranking(self) -> Ranking:
        return random_ranking(TEACHER, 0)

    @pytest.fixture
    def path(self, ranking: Ranking, tmp_path: Path) -> Path:
        ranking.save(tmp_path / "ranking.safetensors")
        return tmp_path / "ranking.safetensors"

    def test_it_is_read_as_it_was_saved(self, ranking: Ranking, path: Path) -> None:
        again = Ranking.load(path, ranking.fingerprint)
        assert again is not None
        for field in dataclasses.fields(Ranking):
            before, after = getattr(ranking, field.name), getattr(again, field.name)
            assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after

    def test_it_holds_the_orders_for_others_to_read(self, ranking: Ranking, path: Path) -> None:
        tensors = load_file(path)
        assert torch.equal(tensors["order.hidden"], ranking.hidden_order)
        assert torch.equal(tensors["order.mlp"], ranking.mlp_order)
        assert torch.equal(tensors["order.kv_heads"], ranking.group_order)
        assert torch.equal(tensors["order.heads"], ranking.head_order)
        assert torch.equal(tensors["order.layers"], descending(ranking.layers))

    def test_nothing_else_is_left_beside_it(self, path: Path) -> None:
        assert list(path.parent.iterdir()) == [path]

    def test_a_new_one_takes_the_place_of_the_old(self, path: Path) -> None:
        other = random_ranking(TEACHER, 1)
        other.save(path)
        assert Ranking.load(path, "0") is None
        again = Ranking.load(path, "1")
        assert again is not None
        assert torch.equal(again.hidden, other.hidden)

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
