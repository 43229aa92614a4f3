"""Checkpoints of one training: the last is the teacher; other architectures are other trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from evaluators.teacher import load_config
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.teachers import TrainingPhase, training_phases, trainings_of
from space.input_error import InputError


def changed(config: Path, folder: Path, **fields: object) -> Path:
    """A copy of a config with other values."""
    folder.mkdir()
    about = json.loads((config / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | fields))
    return folder


def test_several_models_or_several_revisions() -> None:
    assert training_phases(["a", "b"], []) == [TrainingPhase("a", None), TrainingPhase("b", None)]
    assert training_phases(["a"], ["r", "s"]) == [TrainingPhase("a", "r"), TrainingPhase("a", "s")]
    assert list(map(str, training_phases(["org/a"], ["r"]))) == ["org/a@r"]
    assert list(map(str, training_phases(["org/a"], []))) == ["org/a"]


@pytest.mark.parametrize(
    ("models", "revisions", "message"),
    [
        (
            ["a", "b"],
            ["r"],
            "Checkpoints of one training are several models or several revisions of one; 2 models and 1 "
            "revisions were given. Leave --revision out, or name one --model.",
        ),
        (
            ["a", "b", "a"],
            [],
            "Checkpoints of one training are named in its order, each once; a was given twice. "
            "Leave one out.",
        ),
        (
            ["a"],
            ["r", "r"],
            "Checkpoints of one training are named in its order, each once; a@r was given twice. "
            "Leave one out.",
        ),
    ],
)
def test_what_is_no_order_is_refused(models: list[str], revisions: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        training_phases(models, revisions)
    assert str(caught.value) == message


def test_the_last_one_is_the_teacher_and_all_are_recorded(demo_config: Path, tmp_path: Path) -> None:
    early = changed(demo_config, tmp_path / "early", rope_theta=500.0, dtype="bfloat16")
    late = Path(shutil.copytree(demo_config, tmp_path / "late"))
    found = resolve(Flags(budget="1M", model=(str(early), str(late)), device="cpu")).config
    assert (found.teacher, found.revision) == (str(late), "")
    assert found.phases == (str(early), str(late))
    assert found.name == "late-1M"


OTHERS = [
    ({"intermediate_size": 64}, "has model.layers.0.mlp.down_proj.weight of 128 × 64"),
    ({"num_hidden_layers": 9}, "has model.layers.8.input_layernorm.weight of 128"),
    ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "has the type qwen2"),
]


@pytest.mark.parametrize(("fields", "apart"), OTHERS)
def test_another_architecture_is_another_training(
    fields: dict[str, object], apart: str, demo_config: Path, tmp_path: Path
) -> None:
    other = changed(demo_config, tmp_path / "other", **fields)
    twin = Path(shutil.copytree(demo_config, tmp_path / "twin"))
    one, two, three = (TrainingPhase(str(path), None) for path in (demo_config, other, twin))
    found = trainings_of([one, two, three], trust_remote_code=False)
    assert [training.phases for training in found] == [(one, three), (two,)]
    assert found[1].config.model_type == fields.get("model_type", "llama")


@pytest.mark.parametrize(("fields", "apart"), OTHERS)
def test_revisions_of_one_model_have_one_architecture(
    fields: dict[str, object], apart: str, demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"r": str(changed(demo_config, tmp_path / "other", **fields)), "s": str(demo_config)}

    def of_revision(id: str, revision: str, trust_remote_code: bool) -> PretrainedConfig:
        return load_config(folders[revision], None, trust_remote_code)

    monkeypatch.setattr("search.settings.teachers.load_config", of_revision)
    with pytest.raises(InputError) as caught:
        trainings_of(training_phases(["org/a"], ["r", "s"]), trust_remote_code=False)
    message = str(caught.value)
    assert message.startswith("Revisions of one model are checkpoints of one training, and have one arch")
    assert f"org/a@r {apart}, and org/a@s has " in message
    assert message.endswith("Name revisions of the same training, the last one last.")
