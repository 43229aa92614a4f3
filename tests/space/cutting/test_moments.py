"""Moments in a ranking's order: made when they are asked for, from a file that is mapped into memory."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from space.axes.architecture import Axis
from space.cutting import moments as module
from space.cutting.moments import InputMoment, Moments, NormEnergy, moments_file
from tests.contracts.draws import ranking_of
from tests.contracts.tiny import verified

CPU = torch.device("cpu")
DOWN = "model.layers.1.mlp.down_proj.weight"


def second(seed: int, *shape: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.mT


def plain() -> Moments:
    neurons = verified("llama-tied-biases").small.teacher.mlp
    names = (DOWN, "model.layers.2.mlp.down_proj.weight")
    reads = {
        name: InputMoment(1, second(n, neurons, 9), torch.tensor(9.0 + n)) for n, name in enumerate(names)
    }
    return Moments(reads, {}, "key")


def test_they_are_sorted_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    axis_map, moments = verified("llama-tied-biases").small, plain()
    ranking, asked = ranking_of(axis_map, 3), list[int]()
    permuted = module._permuted

    def counted(values: Tensor, order: Tensor) -> Tensor:
        asked.append(1)
        return permuted(values, order)

    monkeypatch.setattr(module, "_permuted", counted)
    found = moments.sorted_by(axis_map, ranking)
    assert found.reads.keys() == moments.reads.keys()
    assert asked == []
    order = ranking.orders[Axis.MLP][1]
    for read in (found.read(DOWN, CPU), found.reads[DOWN]):
        assert torch.equal(read.second, moments.reads[DOWN].second[order][:, order])
        assert read.tokens == 9
    assert len(asked) == 2
    with pytest.raises(KeyError):
        found.reads["of another matrix"]


def test_what_was_used_is_freed() -> None:
    axis_map = verified("llama-tied-biases").small
    found = plain().sorted_by(axis_map, ranking_of(axis_map, 3))
    held = weakref.ref(found.read(DOWN, CPU).second)
    gc.collect()
    assert held() is None


def test_experts_keep_their_tokens() -> None:
    axis_map = verified("mixtral").small
    name, teacher = "model.layers.1.mlp.experts.down_proj", axis_map.teacher
    tokens = torch.arange(float(teacher.experts))
    moments = Moments(
        {name: InputMoment(2, second(0, teacher.experts, teacher.expert_mlp, 5), tokens)}, {}, ""
    )
    ranking = ranking_of(axis_map, 3)
    read = moments.sorted_by(axis_map, ranking).reads[name]
    assert read.tokens is not None
    order = ranking.orders[Axis.EXPERTS][1].flatten()
    assert torch.equal(read.tokens, tokens[order])
    inner = ranking.orders[Axis.EXPERT_MLP][1, order[0]]
    assert torch.equal(read.second[0], moments.reads[name].second[order[0]][inner][:, inner])


def test_a_file_is_written_part_by_part_and_mapped(tmp_path: Path) -> None:
    path, whole = tmp_path / "moments.safetensors", plain()
    norm = Moments({}, {"norm": NormEnergy(torch.ones(4), 1.0)}, "key", {"norm": torch.eye(4)}, tokens=5)
    names = ["norm", "never heard", *whole.reads]
    with moments_file(path, "key", names) as add:
        for name, read in whole.reads.items():
            add(Moments({name: read}, {}, "key"))
        add(norm)
        assert not path.exists()
    found = Moments.load(path, "key")
    assert found is not None
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    for name, read in whole.reads.items():
        assert torch.equal(found.reads[name].second, read.second)
        assert found.reads[name].tokens == read.tokens
    assert (found.energies["norm"].offset, found.tokens, [*found.stream]) == (1.0, 5, ["norm"])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "moments.safetensors"
    plain().save(path)
    before = path.read_bytes()

    def fails(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", fails)
    with pytest.raises(OSError, match="No space left"):
        plain().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
