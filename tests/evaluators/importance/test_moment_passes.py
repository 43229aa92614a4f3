"""Moments of some layers at a time are those of one pass, of teachers in memory and on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evaluators.importance.from_disk import rank_in_bases_from_disk
from evaluators.importance.moment_passes import (
    MomentsRequest,
    gather_from_disk,
    gather_in_groups,
    layer_groups,
)
from evaluators.importance.moments import MomentsListener, gather_moments
from evaluators.importance.rank import rank_in_bases
from evaluators.teacher.layer_by_layer import TeacherFiles
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.moments import Moments
from space.verification.verification import verified_axis_map
from tests.contracts.tiny import each
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(6, 10)


class Parts:
    """Takes parts of moments."""

    def __init__(self, every: int = 1) -> None:
        self.parts: list[Moments] = []
        self.request = MomentsRequest("key", self.parts.append, every)

    @property
    def whole(self) -> Moments:
        reads = {name: read for part in self.parts for name, read in part.reads.items()}
        energies = {name: energy for part in self.parts for name, energy in part.energies.items()}
        stream = {name: second for part in self.parts for name, second in part.stream.items()}
        return Moments(reads, energies, "key", stream, tokens=max(part.tokens for part in self.parts))


def assert_same(found: Moments, wanted: Moments) -> None:
    assert (found.reads.keys(), found.energies.keys()) == (wanted.reads.keys(), wanted.energies.keys())
    for name, read in wanted.reads.items():
        torch.testing.assert_close(found.reads[name].second, read.second)
        assert torch.equal(found.reads[name].tokens, read.tokens)  # type: ignore[arg-type]
        assert found.reads[name].place == read.place
    for name, energy in wanted.energies.items():
        torch.testing.assert_close(found.energies[name].mean, energy.mean)
        assert found.energies[name].offset == energy.offset
    assert (found.stream.keys(), found.tokens) == (wanted.stream.keys(), wanted.tokens)
    for name, second in wanted.stream.items():
        torch.testing.assert_close(found.stream[name], second)


def turnable(model: PreTrainedModel) -> AxisMap:
    return verified_axis_map(model.config, BasisName.WEIGHTED)


@pytest.mark.parametrize("layers", [None, 1, 2, 3])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt2"])
def test_groups_give_what_one_pass_gives(model_type: str, layers: int | None) -> None:
    model = tiny_model(model_type)
    axis_map, parts, told = map_of(model.config), Parts(), list[float]()
    groups = layer_groups(axis_map, layers)
    gather_in_groups(model, axis_map, CALIBRATION, parts.request, groups, told.append)
    assert_same(parts.whole, gather_moments(model, axis_map, CALIBRATION, "key"))
    assert sum(told) == pytest.approx(6 * sum(group.share for group in groups))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_pass_ends_behind_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    ran: list[int] = []
    for number in range(3):
        layer = model.get_submodule(f"model.layers.{number}")
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    axis_map = map_of(model.config)
    gather_in_groups(model, axis_map, CALIBRATION, Parts().request, layer_groups(axis_map, 1))
    assert ran == [0, 0, 1, 0, 1, 2]


def test_every_so_many_batches_one_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.importance.rank._TOKENS_AT_ONCE", 20)  # three batches
    model = tiny_model("llama")
    axis_map, parts = map_of(model.config), Parts(every=2)
    gather_in_groups(model, axis_map, CALIBRATION, parts.request, layer_groups(axis_map))
    wanted = gather_moments(model, axis_map, CALIBRATION[[0, 1, 4, 5]], "key")
    assert_same(parts.whole, wanted)
    listener = MomentsListener(model, axis_map, every=2)
    rank_in_bases(model, axis_map, CALIBRATION, {BasisName.COORDINATE: ""}, pass_context=listener.on())
    assert_same(listener.moments("key"), wanted)


@pytest.mark.parametrize("model_type", each("llama", "mixtral"))
def test_from_the_disk_they_are_the_same(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.importance.rank._TOKENS_AT_ONCE", 20)
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    axis_map = turnable(model)
    files = TeacherFiles(tmp_path, axis_map, torch.device("cpu"), torch.float32)
    alone, beside = Parts(every=2), Parts(every=2)
    gather_from_disk(files, CALIBRATION, alone.request)
    found = rank_in_bases_from_disk(files, CALIBRATION, {BasisName.COORDINATE: ""}, moments=beside.request)
    wanted = gather_moments(model, axis_map, CALIBRATION[[0, 1, 4, 5]], "key")
    assert_same(alone.whole, wanted)
    assert_same(beside.whole, wanted)
    plain = rank_in_bases_from_disk(files, CALIBRATION, {BasisName.COORDINATE: ""})
    for axis, scores in plain[BasisName.COORDINATE].scores.items():
        assert torch.equal(found[BasisName.COORDINATE].scores[axis], scores)


def test_sums_are_used_up() -> None:
    model = tiny_model("llama")
    listener = MomentsListener(model, map_of(model.config))
    with listener.on():
        model(input_ids=CALIBRATION.long(), use_cache=False)
    assert len(list(listener.parts(""))) == 13
    assert list(listener.parts("")) == []
