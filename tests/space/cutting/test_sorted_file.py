"""The sorted weights in a file: the same tensors, written one by one, mapped by all that cut from them."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from space.axes.axis_map import AxisMap, MappedTensor
from space.cutting import sorted_file
from space.cutting.basis import Basis, BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance, sorted_tensors
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import map_sorted, remove_sorted, sorted_bytes, write_sorted
from space.cutting.tensor_file import unfinished
from space.discovery.discovery import discover
from space.verification.behaviour import random_rotation
from space.verification.verification import verified_axis_map
from tests.contracts.draws import ranking_of
from tests.contracts.tiny import logits_of, random_teacher
from tests.space.cutting.test_extraction import HALF
from tests.space.models import SMALL


@pytest.fixture(scope="module")
def axis_map() -> AxisMap:
    return discover(SMALL).axis_map


@pytest.fixture(scope="module")
def ranking(axis_map: AxisMap) -> Ranking:
    return ranking_of(axis_map, 3)


@pytest.fixture
def weights(axis_map: AxisMap) -> dict[str, Tensor]:
    return saved_tensors(random_teacher(SMALL), axis_map)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sorted-coordinate.safetensors"


def turned(ranking: Ranking) -> tuple[AxisMap, Ranking]:
    axis_map = verified_axis_map(SMALL, BasisName.PRINCIPAL)
    hidden = axis_map.teacher.hidden
    basis = Basis(random_rotation(hidden, False, 0), torch.ones(hidden))
    return axis_map, Ranking(ranking.scores, ranking.kv_heads, "", "", basis=basis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("basis", [False, True])
def test_the_file_holds_what_is_sorted_in_memory(
    axis_map: AxisMap, ranking: Ranking, path: Path, dtype: torch.dtype, basis: bool
) -> None:
    if basis:
        axis_map, ranking = turned(ranking)
    weights = {
        name: values.to(dtype) for name, values in saved_tensors(random_teacher(SMALL), axis_map).items()
    }
    write_sorted(path, weights, axis_map, ranking, "a teacher")
    expected = sort_by_importance(weights, axis_map, ranking)
    for found in (load_file(path), map_sorted(path, "a teacher")):
        assert found is not None
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == dtype for name in expected)
        assert all(torch.equal(found[name], values) for name, values in expected.items())
    total = sum(values.nbytes for values in expected.values())
    assert sorted_bytes(axis_map, dtype) == total
    assert total < path.stat().st_size < total + 4096


def test_tensors_of_several_dtypes_are_aligned(
    axis_map: AxisMap, ranking: Ranking, weights: dict[str, Tensor], path: Path
) -> None:
    mixed = {
        name: values.to(torch.bfloat16 if number % 2 else torch.float32)
        for number, (name, values) in enumerate(weights.items())
    }
    write_sorted(path, mixed, axis_map, ranking, "")
    found = map_sorted(path, "")
    assert found is not None
    for name, values in sort_by_importance(mixed, axis_map, ranking).items():
        assert torch.equal(found[name], values)
        assert found[name].data_ptr() % values.itemsize == 0


def test_one_tensor_is_held_at_a_time(
    axis_map: AxisMap,
    ranking: Ranking,
    weights: dict[str, Tensor],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watched(*given: object) -> Iterator[tuple[MappedTensor, Tensor]]:
        for tensor, values in sorted_tensors(*given):  # type: ignore[arg-type]
            made.append(weakref.ref(values))
            yield tensor, values
            del values
            gc.collect()
            alive.append(sum(one() is not None for one in made))

    monkeypatch.setattr(sorted_file, "sorted_tensors", watched)
    write_sorted(path, weights, *turned(ranking), "")
    assert len(alive) == len(made) == len(axis_map.tensors)
    assert max(alive) <= 1


def test_students_are_cut_from_the_mapped_file(
    axis_map: AxisMap, ranking: Ranking, weights: dict[str, Tensor], path: Path
) -> None:
    write_sorted(path, weights, axis_map, ranking, "")
    mapped = map_sorted(path, "")
    assert mapped is not None
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    before = path.read_bytes()
    student = extract(mapped, axis_map, ranking, HALF, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert path.read_bytes() == before
    expected = extract(sort_by_importance(weights, axis_map, ranking), axis_map, ranking, HALF)
    remove_sorted(path)
    assert not path.exists()
    again = extract(mapped, axis_map, ranking, HALF)
    assert torch.equal(logits_of(again), logits_of(expected)), "what is mapped outlives the file"


@pytest.mark.parametrize("damage", ["missing", "another teacher", "cut off", "of no teacher"])
def test_what_cannot_be_used_is_not(
    axis_map: AxisMap, ranking: Ranking, weights: dict[str, Tensor], path: Path, damage: str
) -> None:
    if damage == "of no teacher":
        save_file({"a": torch.ones(2)}, path)
    elif damage != "missing":
        write_sorted(path, weights, axis_map, ranking, "another" if damage == "another teacher" else "")
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    assert map_sorted(path, "") is None


def test_a_full_disk_leaves_the_file_as_it_was(
    axis_map: AxisMap,
    ranking: Ranking,
    weights: dict[str, Tensor],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_sorted(path, weights, axis_map, ranking, "")
    before, calls = path.read_bytes(), []

    def fails(descriptor: int, content: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return len(content)

    monkeypatch.setattr("os.pwrite", fails)
    with pytest.raises(OSError, match="No space left"):
        write_sorted(path, weights, axis_map, ranking, "new")
    assert path.read_bytes() == before
    assert not unfinished(path).exists()


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    unfinished(path).write_bytes(b"half of it")
    remove_sorted(path)
    assert list(path.parent.iterdir()) == []


def test_it_is_an_ordinary_safetensors_file(
    axis_map: AxisMap, ranking: Ranking, weights: dict[str, Tensor], path: Path
) -> None:
    write_sorted(path, weights, axis_map, ranking, "a teacher")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt", "fingerprint": "a teacher"}
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])], "without holes"
    assert ends[-1][1] == len(content) - 8 - length
