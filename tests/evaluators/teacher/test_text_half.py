"""The text half of models that read pictures: found, loaded by itself, cut, and saved as a model of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.teacher import load_config, load_teacher
from evaluators.teacher.on_disk import WeightsOnDisk, teacher_on_disk
from evaluators.teacher.writing import write_directory
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.axes.config_fields import own_fields_of_layers
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.input_error import InputError
from space.verification.contract import random_ranking
from tests.evaluators.teacher.checkpoints import (
    CONFIG,
    CPU,
    WEIGHTS,
    Said,
    Tensors,
    load,
    logits,
    refused,
    save,
)
from tests.evaluators.teacher.wholes import WHOLES, skip_if_class_is_broken, tiny_whole

__all__ = ["save"]
Save = Callable[..., Path]
every_whole = pytest.mark.parametrize("kind", WHOLES)


def renamed(old: str, new: str) -> Callable[[Tensors], None]:
    """A change of stored tensors: another beginning of their names."""

    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[re.sub(f"^{old}", new, name)] = tensors.pop(name)

    return change


def student_of(path: Path, share: float) -> tuple[PreTrainedModel, AxisMap]:
    """A student whose hidden, MLP and layers have a share of the teacher's sizes, in a random ranking.

    Gemma 4 keeps its layers, as its class makes the last one of a kind of its own.
    """
    axis_map = discover(load_config(str(path))).axis_map
    ranking = random_ranking(axis_map, 0)
    sizes = {
        axis: step * max(1, round(share * axis_map.teacher[axis] / step))
        for axis, step in ((Axis.HIDDEN, 4), (Axis.MLP, 1), (Axis.LAYERS, 1))
        if axis in axis_map.free and not (axis is Axis.LAYERS and own_fields_of_layers(axis_map.config))
    }
    tensors = sort_by_importance(saved_tensors(load(path).model, axis_map), axis_map, ranking)
    return extract(tensors, axis_map, ranking, axis_map.complete(sizes)), axis_map


def logits_of_whole(whole: PreTrainedModel) -> Tensor:
    """Skips what the class itself cannot: Llama 4 in transformers 5.24 looks for a field that is gone."""
    try:
        return logits(whole)
    except AttributeError as error:
        skip_if_class_is_broken(error)
        raise


class TestTheTeacher:
    @every_whole
    def test_its_logits_are_those_of_the_whole(self, kind: str, save: Save, caplog: Said) -> None:
        whole = tiny_whole(kind)
        path = save(whole)
        model = load(path).model
        assert type(model).__name__.endswith("ForCausalLM")
        torch.testing.assert_close(logits(model), logits_of_whole(whole))
        assert "pictures are left behind" in caplog.text

    @every_whole
    def test_the_config_alone_says_its_sizes(self, kind: str, save: Save) -> None:
        path = save(tiny_whole(kind))
        tensors = load(path).model.num_parameters()
        (path / WEIGHTS).unlink()
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(load_config(str(path)))
        assert built.num_parameters() == tensors

    def test_on_the_hub(self, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = tiny_whole("qwen3_5")
        path = save(whole)
        monkeypatch.setattr("evaluators.teacher.config._fetch", lambda *_: path)
        teacher = load_teacher("maker/model", revision=None, device=CPU, dtype=torch.float32)
        assert load_config("maker/model").model_type == teacher.model.config.model_type == "qwen3_5_text"
        torch.testing.assert_close(logits(teacher.model), logits_of_whole(whole))

    @every_whole
    def test_layers_are_read_one_at_a_time(self, kind: str, save: Save) -> None:
        path = save(tiny_whole(kind))
        axis_map = discover(load_config(str(path))).axis_map
        whole = saved_tensors(load(path).model, axis_map)
        with teacher_on_disk(path, CPU, torch.float32) as teacher:
            read = WeightsOnDisk(teacher, axis_map)
            assert set(read) == set(whole)
            assert all(torch.equal(read[name], whole[name]) for name in read)


class TestStudents:
    @every_whole
    def test_all_sizes_give_the_wholes_logits(self, kind: str, save: Save) -> None:
        whole = tiny_whole(kind)
        student, axis_map = student_of(save(whole), 1.0)
        torch.testing.assert_close(logits(student), logits_of_whole(whole), rtol=1e-4, atol=1e-4)
        count = parameter_polynomial(axis_map).of(axis_map.teacher)
        assert student.num_parameters() == count < whole.num_parameters()

    @every_whole
    def test_it_is_an_ordinary_model_of_text(self, kind: str, save: Save, tmp_path: Path) -> None:
        path, place = save(tiny_whole(kind)), tmp_path / "student"
        student, _ = student_of(path, 0.6)
        write_directory(student, load(path).tokenizer, torch.float32, place)
        loaded = AutoModelForCausalLM.from_pretrained(place)
        torch.testing.assert_close(logits(loaded), logits(student))
        described = json.loads((place / CONFIG).read_text())
        assert "vision_config" not in described
        assert described["architectures"] == [type(loaded).__name__]

    def test_a_teacher_is_written_with_the_names_of_its_class(self, save: Save, tmp_path: Path) -> None:
        teacher = load(save(tiny_whole("mistral3")))
        write_directory(teacher.model, teacher.tokenizer, torch.float32, tmp_path / "text")
        assert load_file(tmp_path / "text" / WEIGHTS).keys() == set(
            AutoModelForCausalLM.from_config(teacher.model.config).state_dict()
        ) - {"lm_head.weight"}


class TestFiles:
    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("gemma3", renamed(r"language_model\.model\.", "model.language_model.")),
            ("llama4", renamed(r"language_model\.model\.", "model.language_model.")),
            ("gemma4", renamed(r"model\.language_model\.", "language_model.model.")),
            ("qwen3_5", renamed(r"(model\.language_model|lm_head)", r"language_model.\1")),
            ("mistral3", renamed("", "module.")),
        ],
    )
    def test_another_layout_of_names(self, kind: str, change: Any, save: Save) -> None:
        whole = tiny_whole(kind)
        torch.testing.assert_close(logits(load(save(whole, change)).model), logits_of_whole(whole))

    def test_a_head_that_the_whole_ties_but_its_files_hold(self, save: Save, caplog: Said) -> None:
        whole = tiny_whole("mistral3", tie_word_embeddings=False)
        path = save(whole, tie_word_embeddings=True)
        torch.testing.assert_close(logits(load(path).model), logits_of_whole(whole))
        assert "ties lm_head.weight to model.embed_tokens.weight in its config" in caplog.text

    @pytest.mark.parametrize("stated", [True, False])
    def test_whether_the_head_is_tied_is_stated_for_the_whole_or_the_text(
        self, stated: bool, save: Save
    ) -> None:
        path = save(tiny_whole("mistral3"))
        described = json.loads((path / CONFIG).read_text())
        (path / WEIGHTS).unlink()
        described["text_config"]["tie_word_embeddings"] = not stated
        (path / CONFIG).write_text(json.dumps(described | {"tie_word_embeddings": stated}))
        assert load_config(str(path)).tie_word_embeddings is stated
        described.pop("tie_word_embeddings")  # as transformers 4 wrote it
        (path / CONFIG).write_text(json.dumps(described))
        assert load_config(str(path)).tie_word_embeddings is not stated

    def test_ends_of_text_that_are_stated_for_the_whole(self, save: Save) -> None:
        path = save(tiny_whole("gemma3"), eos_token_id=[1, 106])
        described = json.loads((path / CONFIG).read_text())
        described["text_config"].pop("eos_token_id")
        (path / CONFIG).write_text(json.dumps(described))
        assert load_config(str(path)).eos_token_id == [1, 106]

    def test_a_chat_template_of_the_processor(self, save: Save) -> None:
        path = save(tiny_whole("gemma3"))
        (path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        assert load(path).tokenizer.chat_template == "{{ messages }}"

    def test_layers_that_predict_tokens_ahead(self, save: Save, caplog: Said) -> None:
        def add(tensors: Tensors) -> None:
            tensors["mtp.fc.weight"] = torch.ones(16, 32)
            tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.ones(24, 16)

        whole = tiny_whole("qwen3_5")
        torch.testing.assert_close(logits(load(save(whole, add)).model), logits_of_whole(whole))
        assert "tensors of layers that predict tokens further ahead" in caplog.text

    def test_only_what_is_used_has_to_be_finite(self, save: Save) -> None:
        def spoil(end: str) -> Callable[[Tensors], None]:
            def change(tensors: Tensors) -> None:
                name = next(name for name in tensors if name.endswith(end))
                tensors[name].flatten()[0] = float("nan")

            return change

        whole = tiny_whole("gemma3")
        torch.testing.assert_close(
            logits(load(save(whole, spoil("patch_embedding.weight"))).model), logits_of_whole(whole)
        )
        assert "language_model.model.norm.weight[0]" in refused(save(whole, spoil("model.norm.weight")))

    def test_tensors_of_the_text_half_that_have_no_place(self, save: Save) -> None:
        def add(tensors: dict[str, Tensor]) -> None:
            tensors["language_model.model.layers.0.extra.weight"] = torch.ones(2)

        message = refused(save(tiny_whole("gemma3"), add))
        assert "model.layers.0.extra.weight have no place in the model" in message

    def test_a_missing_tensor(self, save: Save) -> None:
        message = refused(save(tiny_whole("gemma3"), lambda t: t.pop("language_model.model.norm.weight")))
        assert "model.norm.weight are missing" in message


class TestRefused:
    def test_a_text_half_that_is_no_causal_model(self, save: Save) -> None:
        path = save(tiny_whole("gemma3"), model_type="qwen3_vl", text_config={"model_type": "qwen3_vl_text"})
        with pytest.raises(InputError) as refusal:
            load_config(str(path))
        assert str(refusal.value) == (
            "of a model of several parts, the text half has to be a causal language model in transformers; "
            f"{path} is of the type qwen3_vl, and its text half of the type qwen3_vl_text, which is none. "
            "Name a decoder-only model, such as one of the same family that reads text alone."
        )

    def test_a_whole_that_does_not_predict_the_next_token(self, save: Save) -> None:
        path = save(tiny_whole("gemma3"), architectures=["Gemma3ForSequenceClassification"])
        assert "is a Gemma3ForSequenceClassification" in refused(path)

    def test_a_quantised_text_half(self, save: Save) -> None:
        path = save(tiny_whole("gemma3"))
        described = json.loads((path / CONFIG).read_text())
        described["text_config"]["quantization_config"] = {"quant_method": "awq"}
        (path / CONFIG).write_text(json.dumps(described))
        assert "is quantised (awq)" in refused(path)
