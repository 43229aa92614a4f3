"""A teacher that is read layer by layer is ranked as one that lies in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import studies.demo
from evaluators.importance.from_disk import (
    rank_from_disk,
    rank_in_bases_from_disk,
    score_layers_from_disk,
)
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.rank import rank, rank_in_bases, score_layers
from evaluators.metrics.loss import validation_loss, validation_loss_from_disk
from evaluators.teacher.layer_by_layer import TeacherFiles
from evaluators.teacher.on_disk import TeacherOnDisk, WeightsOnDisk, teacher_on_disk
from space.axes.axis_map import AxisMap, layer_modules
from space.cutting.basis import BasisName
from space.cutting.extraction import saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import map_sorted, write_sorted
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.contracts.tiny import each, verified
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model

CALIBRATION = random_tokens(7, 10)
CPU = torch.device("cpu")
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied head": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_inner": 24}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", MIXTURE | {"mlp_only_layers": [1]}),
    "windows": ("gemma2", {"sliding_window": 4}),
    "fused": ("gpt_neox", {}),
}


def saved(model: PreTrainedModel, directory: Path, shard: str = "6KB") -> Path:
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def from_disk(directory: Path, axis_map: AxisMap, method: Method | None = None, **more: Any) -> Ranking:
    return rank_from_disk(
        directory, axis_map, CALIBRATION, "a key", method=method, device=CPU, dtype=torch.float32, **more
    )


def assert_same(one: Ranking, other: Ranking) -> None:
    assert one.scores.keys() == other.scores.keys()
    for axis, scores in one.scores.items():
        torch.testing.assert_close(scores, other.scores[axis], rtol=1e-6, atol=0, msg=f"{axis} differs")
    assert (one.method, one.fingerprint, one.kv_heads) == (other.method, other.fingerprint, other.kv_heads)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_teacher_in_memory(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.importance.rank._TOKENS_AT_ONCE", 30)  # three batches
    model_type, changes = CASES[case]
    model = tiny_model(model_type, **changes)
    directory = saved(model, tmp_path)
    assert len(list(directory.glob("*.safetensors"))) > 1, "the checkpoint is not in shards"
    passed: list[float] = []
    found = from_disk(directory, map_of(model.config), advance=passed.append)
    assert_same(found, rank(model, map_of(model.config), CALIBRATION, "a key"))
    assert sum(passed) == pytest.approx(7)
    assert len(passed) == 3 * (model.config.num_hidden_layers + 1), "a part for each layer and batch"


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, AxisMap]:
    model = tiny_model("llama")
    return saved(model, tmp_path), map_of(model.config)


def test_one_layer_is_in_memory_at_a_time_and_each_is_read_once(
    llama: tuple[Path, AxisMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, axis_map = llama
    fetched: list[str] = []
    most = 0
    fetch, forward = TeacherOnDisk.fetch, nn.Linear.forward

    def noted(teacher: TeacherOnDisk, belongs: Any) -> None:
        before = {name for name, one in teacher.model.named_parameters() if not one.is_meta}
        fetch(teacher, belongs)
        now = {name for name, one in teacher.model.named_parameters() if not one.is_meta}
        fetched.extend(sorted(now - before))
        models.append(teacher.model)

    def counted(linear: nn.Linear, values: torch.Tensor) -> torch.Tensor:
        nonlocal most
        layers = layer_modules(models[0], axis_map)
        most = max(most, sum(any(not one.is_meta for one in layer.parameters()) for layer in layers))
        return forward(linear, values)

    models: list[PreTrainedModel] = []
    monkeypatch.setattr(TeacherOnDisk, "fetch", noted)
    monkeypatch.setattr(nn.Linear, "forward", counted)
    from_disk(directory, axis_map)
    assert most == 1
    assert sorted(fetched) == sorted(tensor.name for tensor in axis_map.tensors), "each of them, and once"
    assert all(one.is_meta for layer in layer_modules(models[0], axis_map) for one in layer.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("basis", [BasisName.PRINCIPAL, BasisName.WEIGHTED])
def test_a_basis_is_that_of_the_teacher_in_memory(basis: BasisName, tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    method, axis_map = Method(basis=basis), verified_axis_map(model.config, basis)
    one = rank(model, axis_map, CALIBRATION, "a key", method=method)
    other = from_disk(saved(model, tmp_path), axis_map, method)
    assert_same(other, one)
    assert one.basis is not None
    assert other.basis is not None
    torch.testing.assert_close(other.basis.energy, one.basis.energy, rtol=1e-5, atol=1e-5)
    overlap = (other.basis.rotation.T @ one.basis.rotation).abs()
    torch.testing.assert_close(overlap, torch.eye(16), rtol=0, atol=1e-3)


@pytest.mark.parametrize("model_type", each("nemotron_h", "falcon_h1", "lfm2", "bloom", "deepseek_v3"))
def test_other_decoders_are_ranked_alike(model_type: str, tmp_path: Path) -> None:
    """State spaces, convolutions, latent attention, and layers that give out attention weights too."""
    model, axis_map = verified(model_type).model, verified(model_type).small
    assert_same(from_disk(saved(model, tmp_path), axis_map), rank(model, axis_map, CALIBRATION, "a key"))


@pytest.mark.parametrize(
    ("passed_on", "what"),
    [
        ({"shared": {}}, "layers share a dictionary or a list"),
        ({"given": (torch.ones(1, device="meta"),)}, "layers give one another more than the stream"),
    ],
)
def test_layers_that_share_more_than_the_stream_are_refused(
    passed_on: dict[str, Any], what: str, llama: tuple[Path, AxisMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, axis_map = llama
    cls = type(tiny_model("llama").get_submodule("model.layers.0"))
    call = cls.__call__
    monkeypatch.setattr(cls, "__call__", lambda *given, **named: call(*given, **named, **passed_on))
    with pytest.raises(InputError) as error:
        from_disk(directory, axis_map)
    assert str(error.value) == (
        f"A teacher that does not fit into memory is ranked layer by layer, from the stream alone; {what}. "
        "Take a device on which the whole teacher fits, or another teacher."
    )


def test_layers_that_miss_what_others_did_are_refused(
    llama: tuple[Path, AxisMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Gemma 3n, where later layers attend to the keys of earlier ones."""
    directory, axis_map = llama
    cls = type(tiny_model("llama").get_submodule("model.layers.0.self_attn"))
    forward, keys = cls.forward, dict[str, torch.Tensor]()

    def sharing(module: Any, *given: Any, **named: Any) -> Any:
        if module.layer_idx == 2:
            assert keys["of layer 1"] is not None
        return forward(module, *given, **named)

    monkeypatch.setattr(cls, "forward", sharing)
    with pytest.raises(InputError, match=r"run one by one, layers of this class fail \('of layer 1'\)"):
        from_disk(directory, axis_map)


def test_layers_in_several_lists_are_refused(llama: tuple[Path, AxisMap]) -> None:
    directory, axis_map = llama
    with pytest.raises(InputError, match="layers lie in 2 lists"):
        from_disk(directory, replace(axis_map, stacks=(*axis_map.stacks, "other.")))


@pytest.mark.parametrize(
    "method",
    [Method(width=Width.TAYLOR), Method(depth=Depth.PERPLEXITY), Method(greedy=True), Method(rounds=2)],
)
def test_methods_that_need_the_whole_teacher_are_refused(method: Method, llama: tuple[Path, AxisMap]) -> None:
    with pytest.raises(InputError) as error:
        from_disk(*llama, method)
    assert str(error.value) == (
        "A teacher that does not fit into memory is ranked once, by activations, and its layers by "
        "influence, perplexity or divergence; "
        f"the method asked for is: {method.words}. "
        "Take the default method, or a device on which the whole teacher fits."
    )


def test_states_that_do_not_fit_on_the_disk_are_refused(
    llama: tuple[Path, AxisMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError) as error:
        from_disk(*llama, scratch=tmp_path)
    assert str(error.value) == (
        "The states between two layers have to fit on the disk to run a teacher layer by layer; "
        f"0.0 GB are needed and 0.0 GB are free in {tmp_path}. "
        "Make space there, name another folder with TMPDIR, or take fewer calibration blocks."
    )


def test_nothing_is_left_in_the_scratch_folder(llama: tuple[Path, AxisMap], tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    from_disk(*llama, scratch=scratch)
    assert list(scratch.iterdir()) == []


def test_weights_that_do_not_fit_the_config_are_refused(llama: tuple[Path, AxisMap]) -> None:
    directory, axis_map = llama
    tensors = load_file(next(directory.glob("model-00001-*.safetensors")))
    (directory / "model.safetensors").write_bytes(b"")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(InputError, match=r"is not stored, or shared between layers"):
        from_disk(directory, axis_map)
    save_file(tensors | {"model.other": torch.ones(2)}, directory / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.other has no place in the model"):
        from_disk(directory, axis_map)


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3] = float("nan")
    with pytest.raises(InputError, match="activations have to be finite"):
        from_disk(saved(model, tmp_path), map_of(model.config))


def test_half_precision_gives_the_same_scores_too(tmp_path: Path) -> None:
    model = tiny_model("llama")
    axis_map, directory = map_of(model.config), saved(model, tmp_path)
    found = rank_from_disk(directory, axis_map, CALIBRATION, "a key", device=CPU, dtype=torch.bfloat16)
    loaded = loaded_whole(directory, torch.bfloat16)
    assert_same(found, rank(loaded, axis_map, CALIBRATION, "a key"))


def loaded_whole(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model


def assert_same_from_disk(directory: Path) -> None:
    model = loaded_whole(directory, torch.float32)
    axis_map = map_of(model.config)
    assert_same(from_disk(directory, axis_map), rank(model, axis_map, CALIBRATION, "a key"))


def test_the_embedded_teacher_is_ranked_alike() -> None:
    assert_same_from_disk(Path(studies.demo.__file__).parent / "teacher")


def test_stories_are_ranked_alike(real: Path) -> None:
    assert_same_from_disk(real / "stories260K")


@pytest.mark.parametrize("depth", [Depth.PERPLEXITY, Depth.DIVERGENCE])
@pytest.mark.parametrize("case", ["llama", "gpt2", "windows"])
def test_layers_score_as_those_of_a_teacher_in_memory(
    case: str, depth: Depth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.importance.rank._TOKENS_AT_ONCE", 30)  # three batches
    model_type, sizes = CASES[case]
    model = tiny_model(model_type, num_hidden_layers=4, **sizes)
    axis_map, method, told = map_of(model.config), Method(depth=depth), list[float]()
    files = TeacherFiles(saved(model, tmp_path), axis_map, CPU, torch.float32)
    found = score_layers_from_disk(files, CALIBRATION, method, told.append)
    wanted = score_layers(model, axis_map, CALIBRATION, method)
    torch.testing.assert_close(found.layers, wanted.layers, rtol=1e-5, atol=1e-6)
    assert len(told) == 4


def test_all_bases_come_from_one_reading(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    axis_map = verified_axis_map(model.config, BasisName.WEIGHTED)
    files = TeacherFiles(saved(model, tmp_path), axis_map, CPU, torch.float32)
    keys, told = {BasisName.COORDINATE: "one", BasisName.WEIGHTED: "other"}, list[float]()
    scores = score_layers(model, axis_map, CALIBRATION, Method(depth=Depth.PERPLEXITY))
    method = Method(depth=Depth.PERPLEXITY)
    found = rank_in_bases_from_disk(files, CALIBRATION, keys, told.append, method, layers=scores)
    wanted = rank_in_bases(model, axis_map, CALIBRATION, keys, method=method, layers=scores)
    assert sum(told) == pytest.approx(len(CALIBRATION))
    for basis, ranking in wanted.items():
        assert_same(found[basis], ranking)
        assert (found[basis].basis is None) == (ranking.basis is None)


def test_losses_are_those_of_the_teacher_in_memory(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    files = TeacherFiles(saved(model, tmp_path), map_of(model.config), CPU, torch.float32)
    found = validation_loss_from_disk(files, CALIBRATION)
    assert found == pytest.approx(validation_loss(model, CALIBRATION), rel=1e-6)
    learnt = CALIBRATION % 3 > 0
    found = validation_loss_from_disk(files, CALIBRATION, learnt)
    assert found == pytest.approx(validation_loss(model, CALIBRATION, learnt), rel=1e-6)


@pytest.mark.parametrize("basis", [BasisName.COORDINATE, BasisName.WEIGHTED])
def test_sorted_weights_are_written_from_the_files(basis: BasisName, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    axis_map = verified_axis_map(model.config, basis)
    ranking = rank(model, axis_map, CALIBRATION, "a key", method=Method(basis=basis))
    with teacher_on_disk(saved(model, tmp_path), CPU, torch.float32) as files:
        write_sorted(tmp_path / "sorted", WeightsOnDisk(files, axis_map), axis_map, ranking, "a key")
        layers = layer_modules(files.model, axis_map)
        assert sum(any(not one.is_meta for one in layer.parameters()) for layer in layers) == 1
    found = map_sorted(tmp_path / "sorted", "a key")
    assert found is not None
    wanted = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name
