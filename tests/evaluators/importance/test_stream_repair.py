"""What reads a turned stream is mended by what its own norm lets through: least squares on raw states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import Moments
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.verification.contract import random_ranking, random_teacher
from tests.evaluators.importance.test_covariance import CALIBRATION, CONFIG, turnable

KEPT = 12
NORM = "model.layers.1.post_attention_layernorm"
READERS = ("gate_proj", "up_proj")


def teacher_and_ranking(basis: BasisName) -> tuple[PreTrainedModel, AxisMap, Ranking]:
    """Only hidden has another order than before."""
    model, axis_map = random_teacher(CONFIG), turnable()
    ranking = rank(model, axis_map, CALIBRATION, "", method=Method(basis=basis))
    return model, axis_map, replace(random_ranking(axis_map, 0, ()), basis=ranking.basis)


def states_at(model: PreTrainedModel, name: str) -> Tensor:
    """(n, D) float64, what a norm reads over its root mean square."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for block in CALIBRATION:
            model(input_ids=block[None], use_cache=False)
    hook.remove()
    rows = torch.cat(seen).flatten(0, 1).double()
    return rows / rows.square().mean(-1, keepdim=True).sqrt()


def student_of(
    model: PreTrainedModel, axis_map: AxisMap, ranking: Ranking, hidden: int, least_squares: bool = True
) -> LlamaForCausalLM:
    moments = gather_moments(model, axis_map, CALIBRATION, "").sorted_by(axis_map, ranking)
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    architecture = replace(axis_map.teacher, hidden=hidden)
    repair = Repair(least_squares=least_squares, moments=moments, ridge=1e-9)
    student = extract(canonical, axis_map, ranking, architecture, repair=repair)
    assert isinstance(student, LlamaForCausalLM)
    return student


def test_readers_are_the_least_squares_of_what_they_read() -> None:
    model, axis_map, ranking = teacher_and_ranking(BasisName.WEIGHTED)
    assert ranking.basis is not None
    turned = states_at(model, NORM) @ ranking.basis.rotation.double()
    norm = model.get_parameter(f"{NORM}.weight").double()
    student = student_of(model, axis_map, ranking, KEPT)
    for name in READERS:
        weight = model.get_parameter(f"model.layers.1.mlp.{name}.weight").double() * norm
        output = turned @ (weight @ ranking.basis.rotation.double()).T
        wanted = torch.linalg.lstsq(turned[:, :KEPT], output).solution.T
        found = student.get_parameter(f"model.layers.1.mlp.{name}.weight").double()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_norm_has_the_gain_of_what_it_reads() -> None:
    model, axis_map, ranking = teacher_and_ranking(BasisName.PRINCIPAL)
    assert ranking.basis is not None
    turned = states_at(model, NORM) @ ranking.basis.rotation.double()
    gain = turned[:, :KEPT].square().mean().sqrt()
    found = student_of(model, axis_map, ranking, KEPT).get_parameter(f"{NORM}.weight")
    torch.testing.assert_close(found, torch.full_like(found, float(gain)), rtol=1e-4, atol=0)


def test_where_hidden_is_whole_nothing_is_mended() -> None:
    model, axis_map, ranking = teacher_and_ranking(BasisName.WEIGHTED)
    whole = axis_map.teacher.hidden
    mended = student_of(model, axis_map, ranking, whole).state_dict()
    plain = student_of(model, axis_map, ranking, whole, least_squares=False).state_dict()
    for name, values in plain.items():
        torch.testing.assert_close(mended[name], values, rtol=0, atol=0)


def test_coordinates_have_no_turned_stream() -> None:
    model, axis_map, ranking = teacher_and_ranking(BasisName.WEIGHTED)
    moments = gather_moments(model, axis_map, CALIBRATION, "")
    assert len(moments.stream) == 5, "two norms a layer, and the last"
    assert moments.sorted_by(axis_map, replace(ranking, basis=None)).stream == {}
    names = set(moments.sorted_by(axis_map, ranking).norm_of.values())
    assert names == moments.stream.keys()


def test_they_are_kept(tmp_path: Path) -> None:
    moments = gather_moments(random_teacher(CONFIG), turnable(), CALIBRATION, "a fingerprint")
    moments.save(tmp_path / "moments.safetensors")
    found = Moments.load(tmp_path / "moments.safetensors", "a fingerprint")
    assert found is not None
    assert found.stream.keys() == moments.stream.keys()
    for name, second in moments.stream.items():
        assert torch.equal(found.stream[name], second)
