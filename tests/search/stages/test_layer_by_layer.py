"""A run whose teacher is read layer by layer finds what one finds that has it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.distillation.optimizers import OptimizerName
from evaluators.huggingface.residence import Residence
from search.settings import costs, resolution
from search.settings.command_line import read_flags
from search.settings.flags import Flags
from search.settings.placement import Placement
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages import pipeline
from search.stages.layer_by_layer import check_layer_by_layer
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.axis_map import ResidualStream
from space.cutting.basis import BasisName
from space.cutting.ranking import Ranking
from space.input_error import InputError
from tests.small_search import SMALL, write_stories, write_teacher
from tests.warm_python import brief

FROM_DISK = Placement(teacher_stays=False, sorted_stay=False, layer_by_layer=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a teacher and its text."""
    folder = tmp_path_factory.mktemp("layers")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMSEARCH_CACHE", str(folder / "cache"))
        patch.setattr("search.settings.costs._WORKLOADS", brief(costs._WORKLOADS))
        yield folder


def resolved(folder: Path, placement: Placement, *more: str) -> Resolved:
    words = [*SMALL.replace("--basis coordinate", "--basis auto").split(), "--targets", "hidden"]
    words += ["--budget", "60%", "--model", str(folder / "teacher"), "--data", str(folder / "stories.txt")]
    words += ["--repair", "least-squares", "--calibration-samples", "16"]
    return replace(resolve(read_flags([*words, *more])), placement=placement)


def searched(folder: Path, run: Resolved, name: str) -> tuple[dict[str, Any], Ranking, list[bytes]]:
    """The summary, the ranking and the targets of a whole run."""
    directory = RunDirectory(folder / name)
    summary = pipeline.run(run, directory, Console(quiet=True), "a command")
    ranking = Ranking.load(directory.ranking, None)
    assert ranking is not None
    return (
        summary,
        ranking,
        [one.read_bytes() for one in sorted(directory.targets.rglob("*")) if one.is_file()],
    )


def test_a_run_finds_the_same_from_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, ranking, targets = searched(folder, resolved(folder, Placement()), "in memory")
    whole = Residence.on_device

    def refused(residence: Residence) -> Any:
        assert residence.stays, "the teacher came to the device as a whole"
        return whole(residence)

    with monkeypatch.context() as patch:
        patch.setattr(Residence, "on_device", refused)
        found = searched(folder, resolved(folder, FROM_DISK), "from disk")
    assert found[0]["teacher"]["loss"] == pytest.approx(summary["teacher"]["loss"], rel=1e-5)
    assert found[1].method == ranking.method
    for axis, scores in ranking.scores.items():
        torch.testing.assert_close(found[1].scores[axis], scores, rtol=1e-4, atol=1e-6)
    assert found[2] == targets
    one, other = ({t["label"]: t["loss"] for t in run["trials"]} for run in (summary, found[0]))
    assert one.keys() == other.keys()
    for label, loss in one.items():
        assert other[label] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--objectives", "loss,latency"), "latency is compared with its own"),
        (("--targets", "live"), "--targets live runs it beside each student"),
        (("--rounds", "2"), "the method asked for is"),
    ],
)
def test_what_needs_the_whole_teacher_is_refused(folder: Path, flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_layer_by_layer(resolved(folder, FROM_DISK, *flags))
    check_layer_by_layer(resolved(folder, Placement(), *flags))


def with_norms_that_write(run: Resolved) -> Resolved:
    """The run in a rotated basis, of a class whose layers have norms that write into the stream."""
    name = "model.layers.*.post_attention_layernorm.weight"
    stream = ResidualStream({}, 0.0, unfolded=(name,))
    return replace(run, axis_map=replace(run.axis_map, stream=stream), basis=BasisName.WEIGHTED)


def test_a_basis_that_needs_the_whole_teacher_is_refused_before_any_work(folder: Path) -> None:
    run = with_norms_that_write(resolved(folder, FROM_DISK))
    with pytest.raises(InputError, match=r"post_attention_layernorm.weight does. Take --basis coordinate"):
        check_layer_by_layer(run)
    check_layer_by_layer(replace(run, basis=BasisName.COORDINATE))
    check_layer_by_layer(replace(run, placement=Placement()))


@pytest.mark.parametrize("placement", [FROM_DISK, Placement()])
def test_an_open_basis_is_coordinates_where_the_other_needs_the_whole_teacher(
    folder: Path, monkeypatch: pytest.MonkeyPatch, placement: Placement
) -> None:
    run = resolved(folder, Placement()).with_config(basis="auto")
    run = replace(run, turned=with_norms_that_write(run))
    monkeypatch.setattr(resolution, "choose", lambda *_, **__: (placement, OptimizerName.ADAMW))
    monkeypatch.setattr(resolution, "memory_of", lambda *_: None)
    found = resolution._placed(run, Flags(), open_ones=False)
    whole = placement == Placement()
    assert (found.turned is None, found.config.basis) == (not whole, "auto" if whole else "coordinate")
    assert found.placement == placement
