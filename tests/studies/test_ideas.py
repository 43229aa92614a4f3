"""The ideas against functions that they must not change, and students that they must equal."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments, reader_weighting
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import InputMoment, Moments
from space.cutting.ranking import Ranking
from space.verification.contract import random_teacher
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.results import Results
from studies.ideas import __main__ as study
from studies.ideas.merging import merged, with_merged
from studies.ideas.regions import projected, region_bases, regions
from studies.ideas.stream import ALIKE, GRADIENT, Statistics, folded_teacher, norms_of, statistics_of
from studies.ideas.values import Entries, value_moments, with_values
from studies.ideas.variants import STUDENTS, Students, Variant
from studies.ideas.work import RESULTS, STEPS, STUDENT, described

CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-12,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
)
CALIBRATION = torch.randint(0, 48, (6, 10), generator=torch.Generator().manual_seed(0))


@cache
def axis_map() -> AxisMap:
    return verified_axis_map(teacher().config, BasisName.PRINCIPAL)


@cache
def teacher() -> PreTrainedModel:
    return random_teacher(CONFIG)


@cache
def statistics() -> tuple[PreTrainedModel, Statistics]:
    whole = folded_teacher(teacher(), axis_map())
    return whole, statistics_of(whole, axis_map(), CALIBRATION)


@cache
def ranking() -> Ranking:
    return rank(teacher(), axis_map(), CALIBRATION, "", method=Method(basis=BasisName.WEIGHTED))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=CALIBRATION, use_cache=False).logits
    return found


@cache
def students() -> Students:
    bench = SimpleNamespace(
        teacher=SimpleNamespace(model=teacher()),
        corpus=SimpleNamespace(calibration=CALIBRATION),
        setting=SimpleNamespace(widths={Axis.HIDDEN: 16, Axis.MLP: 24}),
    )
    return Students(cast(Bench, bench))


class TestStream:
    def test_the_folded_teacher_is_the_teacher(self) -> None:
        torch.testing.assert_close(logits(statistics()[0]), logits(teacher()), rtol=1e-4, atol=1e-5)

    def test_all_norms_together_make_the_basis_of_the_engine(self) -> None:
        of = statistics()[1]
        names = [norm.name for norm in norms_of(axis_map())]
        assert (names[0], names[-1]) == ("model.layers.0.input_layernorm.weight", "model.norm.weight")
        stream, basis = axis_map().stream, ranking().basis
        assert stream is not None
        assert basis is not None
        wanted = reader_weighting(teacher(), axis_map(), stream, of.covariance(names))
        torch.testing.assert_close(of.reading(names), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of.basis("weighted", names).energy, basis.energy, rtol=1e-3, atol=1e-4)

    def test_the_gradient_at_the_last_norm_is_that_of_the_softmax(self) -> None:
        """E[ggᵀ] = Wᵀ E[diag(p) − ppᵀ] W for labels drawn from p; here with many draws of the same text."""
        whole = statistics()[0]
        text = CALIBRATION[:1].repeat(800, 1)
        found = statistics_of(whole, axis_map(), text).gradients["model.norm.weight"]
        p = logits(whole)[0].double().softmax(-1)
        fisher = torch.diag(p.mean(0)) - p.T @ p / len(p)
        head = whole.get_output_embeddings().weight.detach().double()
        wanted = head.T @ fisher @ head
        assert float((found - wanted).norm() / wanted.norm()) < 0.05

    def test_norms_alike_have_the_same_share(self) -> None:
        of = statistics()[1]
        names = list(of.gradients)
        parts = [of.gradient([name], alike=True) * of.covariances[name] for name in names]
        assert [float(part.sum()) for part in parts] == pytest.approx([1.0] * len(names))
        for name in (GRADIENT, ALIKE):
            rotation = of.basis(name, names).rotation
            torch.testing.assert_close(rotation.T @ rotation, torch.eye(24), rtol=0, atol=1e-5)


class TestRegions:
    def test_they_are_neighbours_and_all(self) -> None:
        assert regions(list("abcdefg"), 3) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
        assert regions(list("abc"), 1) == [["a", "b", "c"]]

    @pytest.mark.parametrize("number", [1, 2, 5])
    def test_all_directions_change_nothing(self, number: int) -> None:
        whole, of = statistics()
        with projected(whole, region_bases(of, "principal", number), 24):
            found = logits(whole)
        torch.testing.assert_close(found, logits(teacher()), rtol=1e-3, atol=1e-4)

    def test_one_region_is_the_student_of_that_basis(self) -> None:
        whole, of = statistics()
        bases = region_bases(of, "weighted", 1)
        turned = replace(ranking(), basis=next(iter(bases.values())))
        canonical = sort_by_importance(saved_tensors(teacher(), axis_map()), axis_map(), turned)
        sizes = {axis: axis_map().teacher[axis] for axis in axis_map().free}
        architecture = axis_map().complete({**sizes, Axis.HIDDEN: 16})
        student = extract(canonical, axis_map(), turned, architecture)
        with projected(whole, bases, 16):
            found = logits(whole)
        torch.testing.assert_close(found, logits(student), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found, logits(teacher()), atol=1e-2)
        torch.testing.assert_close(logits(whole), logits(teacher()), rtol=1e-4, atol=1e-5)  # hooks are gone


class TestValues:
    @pytest.mark.parametrize("entries", Entries)
    def test_all_entries_change_nothing(self, entries: Entries) -> None:
        moments = value_moments(teacher(), CALIBRATION)
        found = logits(with_values(teacher(), moments, entries, 8))
        torch.testing.assert_close(found, logits(teacher()), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(("entries", "exact"), [*zip(Entries, (False, True, True), strict=True)])
    def test_values_of_few_directions_need_few_entries(self, entries: Entries, exact: bool) -> None:
        model = random_teacher(CONFIG)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("v_proj.weight"):
                    few = torch.randn(2, 8, 3, generator=generator)
                    weight.copy_((few @ torch.randn(2, 3, 24, generator=generator)).flatten(0, 1))
        found = logits(with_values(model, value_moments(model, CALIBRATION), entries, 3))
        assert torch.allclose(found, logits(model), rtol=1e-3, atol=1e-3) is exact

    def test_the_weighted_entries_keep_most_of_what_is_written(self) -> None:
        """The mean of |W_o (v − v̂)|² in the first layer, on the values that the basis was made of."""
        moments = value_moments(teacher(), CALIBRATION)
        wanted = self._written(teacher())
        errors = {
            entries: float(
                (self._written(with_values(teacher(), moments, entries, 4)) - wanted).square().mean()
            )
            for entries in Entries
        }
        assert errors[Entries.WEIGHTED] < errors[Entries.PRINCIPAL] < errors[Entries.COORDINATE]

    def _written(self, model: PreTrainedModel) -> Tensor:
        """(N, T, K, G, D) what each head's output makes of the values of a token."""
        attention = model.get_submodule("model.layers.0.self_attn")
        heard: list[Tensor] = []
        value = attention.get_submodule("v_proj")
        hook = value.register_forward_hook(lambda module, arguments, output: heard.append(output))
        logits(model)
        hook.remove()
        output = attention.get_parameter("o_proj.weight").detach().unflatten(1, (2, 2, 8))
        return torch.einsum("ntki,okgi->ntkgo", heard[0].detach().unflatten(-1, (2, 8)), output)


class TestMerging:
    def test_an_exact_multiple_is_merged_without_loss(self) -> None:
        inputs = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inputs[:, 3], inputs[:, 4] = -2 * inputs[:, 1], 0.5 * inputs[:, 0]
        weights = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = merged(weights, inputs.T @ inputs / 100, 3)
        torch.testing.assert_close(inputs[:, :3] @ found[:, :3].T, inputs @ weights.T)
        torch.testing.assert_close(found[:, 2], weights[:, 2])

    def test_a_neuron_goes_to_the_one_it_goes_along_with_most(self) -> None:
        """By hand: its cosines with the kept are 0.5 and −0.8, so it is −1.6 / 4 of the second."""
        second = torch.tensor([[1.0, 0.0, 0.5], [0.0, 4.0, -1.6], [0.5, -1.6, 1.0]]).double()
        found = merged(torch.tensor([[1.0, 1.0, 10.0]]), second, 2)
        torch.testing.assert_close(found[:, :2], torch.tensor([[1.0, 1 - 10 * 1.6 / 4]]))

    def test_neurons_without_activation_are_nothing(self) -> None:
        second = torch.zeros(3, 3).double()
        weights = torch.ones(2, 3)
        assert torch.equal(merged(weights, second, 2), weights)

    def test_a_teacher_of_twin_neurons_loses_nothing_by_half(self) -> None:
        model = random_teacher(CONFIG)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "mlp.gate" in name or "mlp.up" in name:
                    weight[20:] = weight[:20]
        plain = replace(rank(model, axis_map(), CALIBRATION, ""), basis=None)
        plain.scores[Axis.MLP][:, :20] += 1e3  # one twin of each pair first
        moments = gather_moments(model, axis_map(), CALIBRATION, "").sorted_by(axis_map(), plain)
        canonical = sort_by_importance(saved_tensors(model, axis_map()), axis_map(), plain)
        sizes = {axis: axis_map().teacher[axis] for axis in axis_map().free}
        half = axis_map().complete({**sizes, Axis.MLP: 20})
        taken_in = with_merged(canonical, axis_map(), moments, half)
        torch.testing.assert_close(
            logits(extract(taken_in, axis_map(), plain, half)), logits(model), rtol=1e-3, atol=1e-4
        )
        dropped = logits(extract(canonical, axis_map(), plain, half))
        assert not torch.allclose(dropped, logits(model), atol=1e-2)

    def test_what_is_not_of_neurons_stays(self) -> None:
        name = "model.layers.0.self_attn.o_proj.weight"
        moments = Moments({name: InputMoment(1, torch.eye(32).double())}, {}, "")
        canonical = saved_tensors(teacher(), axis_map())
        found = with_merged(canonical, axis_map(), moments, axis_map().teacher)
        assert all(found[name] is canonical[name] for name in canonical)


@pytest.mark.parametrize("basis", ["coordinate", "weighted", GRADIENT])
@pytest.mark.parametrize("neurons", ["merged", "least squares"])
def test_students_of_a_basis_differ_in_what_reads_their_neurons(basis: str, neurons: str) -> None:
    dropped, mended = (
        dict(students().student(Variant(basis, n)).named_parameters()) for n in ("dropped", neurons)
    )
    differ = {name for name in dropped if not torch.equal(dropped[name], mended[name])}
    assert differ == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


def test_variants_are_told_apart() -> None:
    assert len({variant.name for variant in STUDENTS}) == len(STUDENTS)
    assert STUDENTS[0].name == "weighted: dropped", "the first of a table is what others are compared to"


def test_the_tables_compare_to_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", RESULTS.key)
    monkeypatch.setattr(study, "RESULTS", results)
    for seed in (0, 1):
        for variant, after in (("gradient: dropped", 2.25), ("weighted: dropped", 2.5)):
            about = described("embedded", STUDENT, variant, STEPS, seed)
            results.add({**about, "before": 4.0, "after": after + seed})
    about = described("embedded", "values", "principal: 4 of 8", 0, 0)
    results.add({**about, "teacher_loss": 2.0, "before": 2.125})
    lines = study.tables().splitlines()
    assert lines.index("| weighted: dropped | 4.000 | 3.000 ± 0.707 |  |") + 1 == lines.index(
        "| gradient: dropped | 4.000 | 2.750 ± 0.707 | -0.250 ± 0.000 |"
    )
    assert "| principal: 4 of 8 | 2.125 | 0.125 |" in lines
    assert "| teacher | 2.000 |  |" in lines
