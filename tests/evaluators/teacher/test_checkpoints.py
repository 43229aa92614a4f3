"""Checkpoints as people have them: config and files at odds, further layers, mixed precision."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from evaluators.teacher import load_config
from evaluators.teacher.on_disk import teacher_on_disk
from evaluators.teacher.vocabulary import check_texts, check_tokens
from search.stages import preparation
from search.terminal.console import Console
from space.counting.counting import parameter_polynomial
from space.discovery.discovery import discover
from space.input_error import InputError
from tests.evaluators.teacher.checkpoints import (
    CONFIG,
    CPU,
    DEEPSEEK,
    WEIGHTS,
    Said,
    Tensors,
    full_size_student,
    llama,
    load,
    logits,
    refused,
    same_size,
    save,
    written,
)
from tests.evaluators.tiny_models import tiny_model
from tests.search.synthetic import run_config

__all__ = ["save"]


class TestTiedInTheConfigApartInTheFile:
    @staticmethod
    def untie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"].flip(0)

    def test_the_file_counts(self, save: Callable[..., Path], tmp_path: Path, caplog: Said) -> None:
        path = save(llama(tie_word_embeddings=True), self.untie)
        stored = load_file(path / WEIGHTS)
        apart = llama(tie_word_embeddings=False)
        apart.load_state_dict(stored)
        teacher, student = load(path).model, full_size_student(path)
        torch.testing.assert_close(logits(teacher), logits(apart))
        torch.testing.assert_close(logits(student), logits(apart))
        axis_map = discover(load_config(str(path))).axis_map
        assert parameter_polynomial(axis_map).of(axis_map.teacher) == apart.num_parameters()
        told = [line for line in caplog.messages if "they count, so it and its students have both" in line]
        assert told == [
            f"{path} ties lm_head.weight to model.embed_tokens.weight in its config, but its files hold two "
            "different tensors: they count, so it and its students have both"
        ]
        place = written(student, path, tmp_path / "student")
        assert json.loads((place / CONFIG).read_text())["tie_word_embeddings"] is False
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(place)), logits(apart))

    def test_from_the_disk_as_well(self, save: Callable[..., Path]) -> None:
        path = save(llama(tie_word_embeddings=True), self.untie)
        with teacher_on_disk(path, CPU, torch.float32) as files:
            files.fetch(lambda _: True)
            torch.testing.assert_close(logits(files.model), logits(load(path).model))

    def test_the_same_tensor_twice_is_tied(self, save: Callable[..., Path], caplog: Said) -> None:
        def twice(tensors: Tensors) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        path = save(llama(tie_word_embeddings=True), twice)
        assert load_config(str(path)).tie_word_embeddings
        model: Any = load(path).model
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not [line for line in caplog.messages if "they count" in line]

    def test_from_the_hub_it_is_seen_when_the_files_come(
        self, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(llama(tie_word_embeddings=True), self.untie)
        alone = path.with_name("config")
        alone.mkdir()
        (alone / CONFIG).write_bytes((path / CONFIG).read_bytes())
        monkeypatch.setattr("evaluators.teacher.loading.find_config", lambda *_: alone)
        monkeypatch.setattr("evaluators.teacher.loading.find_all", lambda *_: path)
        assert "Give the same command again" in refused(path)


class TestDtypes:
    def test_what_is_stored_in_float32_is_written_in_float32(
        self, save: Callable[..., Path], tmp_path: Path
    ) -> None:
        biases = "model.layers.1.mlp.gate.e_score_correction_bias"
        eight = 1 + torch.arange(8) / 1024  # four values in bfloat16

        def store(tensors: Tensors) -> None:
            tensors.update({name: values.bfloat16() for name, values in tensors.items()})
            tensors[biases] = eight

        path = save(tiny_model("deepseek_v3", **DEEPSEEK), store, dtype="bfloat16")
        teacher = load(path, torch.bfloat16)
        assert teacher.stored_dtype == torch.bfloat16
        assert teacher.other_dtypes == {"model.layers.*.mlp.gate.e_score_correction_bias": torch.float32}
        place = written(full_size_student(path, torch.bfloat16), path, tmp_path / "student")
        stored = load_file(place / WEIGHTS)
        assert stored[biases].sort().values.tolist() == eight.tolist()
        assert {values.dtype for name, values in stored.items() if name != biases} == {torch.bfloat16}
        assert json.loads((place / CONFIG).read_text())["dtype"] == "bfloat16"

    def test_the_first_tensor_does_not_name_the_dtype_of_all(
        self, save: Callable[..., Path], tmp_path: Path
    ) -> None:
        def store(tensors: Tensors) -> None:
            halves = {name: values.half() for name, values in tensors.items() if "embed" not in name}
            tensors.update(halves)

        path = save(llama(), store, dtype="float16")
        place = written(load(path).model, path, tmp_path / "student")
        stored, before = load_file(place / WEIGHTS), load_file(path / WEIGHTS)
        assert {name: values.dtype for name, values in stored.items()} == {
            name: values.dtype for name, values in before.items()
        }
        assert all(torch.equal(stored[name], values) for name, values in before.items())
        assert json.loads((place / CONFIG).read_text())["dtype"] == "float16"


class TestPromises:
    @pytest.mark.parametrize(
        ("model_type", "field", "sizes"),
        [
            ("llama", "num_nextn_predict_layers", {}),
            ("llama", "mtp_num_hidden_layers", {}),
            ("llama", "num_mtp_modules", {}),
            ("deepseek_v3", "num_nextn_predict_layers", DEEPSEEK),
        ],
    )
    def test_layers_that_the_class_does_not_make_are_not_promised(
        self,
        model_type: str,
        field: str,
        sizes: dict[str, Any],
        save: Callable[..., Path],
        tmp_path: Path,
        caplog: Said,
    ) -> None:
        path = save(tiny_model(model_type, **{"vocab_size": 257, **sizes}), **{field: 1})
        place = written(same_size(path), path, tmp_path / "student")
        fields = json.loads((place / CONFIG).read_text())
        promised = {name: fields[name] for name in ("num_mtp_layers", field) if name in fields}
        assert promised
        assert set(promised.values()) == {0}
        [line] = {line for line in caplog.messages if "makes no such layers" in line}
        assert line.startswith(f"{path} promises ")

    def test_what_counts_no_layers_stays(self, save: Callable[..., Path]) -> None:
        path = save(llama(), mtp_loss_scaling_factor=0.1, mtp_token_id=3, use_mtp=True)
        config = load_config(str(path))
        assert (config.mtp_loss_scaling_factor, config.mtp_token_id, config.use_mtp) == (0.1, 3, False)

    def test_layers_that_the_class_makes_stay(
        self, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(llama(), num_mtp_layers=1)
        shapes = iter([{"a": (1,)}, {}])
        monkeypatch.setattr("evaluators.teacher.promises._shapes", lambda _: next(shapes))
        assert load_config(str(path)).num_mtp_layers == 1

    @pytest.mark.parametrize("number", [3, 7])
    def test_layers_behind_the_last_that_predict_ahead_are_left_out(
        self, number: int, save: Callable[..., Path], caplog: Said
    ) -> None:
        model, layer = llama(), f"model.layers.{number}."

        def add(tensors: Tensors) -> None:
            last = {name: values for name, values in tensors.items() if name.startswith("model.layers.2.")}
            tensors.update({name.replace("model.layers.2.", layer): 0 + v for name, v in last.items()})
            tensors[f"{layer}eh_proj.weight"] = torch.ones(16, 32)
            tensors[f"{layer}enorm.weight"] = torch.ones(16)
            tensors[f"{layer}shared_head.head.weight"] = torch.ones(257, 16)

        self.left_out(save(model, add), model, caplog, count=12)

    @pytest.mark.parametrize("prefix", ["mtp.", "model.mtp_layers.0.", "model.nextn_block.0."])
    def test_modules_that_predict_ahead_are_left_out(
        self, prefix: str, save: Callable[..., Path], caplog: Said
    ) -> None:
        model = llama()

        def add(tensors: Tensors) -> None:
            tensors[f"{prefix}fc.weight"] = torch.ones(16, 32)
            tensors[f"{prefix}norm.weight"] = torch.full((16,), float("nan"))

        self.left_out(save(model, add), model, caplog, count=2)

    @staticmethod
    def left_out(path: Path, model: PreTrainedModel, caplog: Said, count: int) -> None:
        torch.testing.assert_close(logits(load(path).model), logits(model))
        [line] = [line for line in caplog.messages if "are left out" in line]
        assert line.startswith(f"of {path}, tensors of layers that predict tokens further ahead")
        assert line.endswith(f" and {count - 3} more" if count > 3 else ".norm.weight")
        with teacher_on_disk(path, CPU, torch.float32) as files:
            files.fetch(lambda _: True)
            torch.testing.assert_close(logits(files.model), logits(model))

    def test_layers_that_the_config_forgot_are_refused(self, save: Callable[..., Path]) -> None:
        path = save(llama(), num_hidden_layers=2)
        assert "model.layers.2.input_layernorm.weight" in (message := refused(path))
        assert "have no place in the model" in message

    def test_code_that_does_not_run_is_not_named(self, save: Callable[..., Path], tmp_path: Path) -> None:
        path = save(llama(), auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
        settings = json.loads((path / "tokenizer_config.json").read_text())
        settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        place = written(same_size(path), path, tmp_path / "student")
        assert "auto_map" not in json.loads((place / CONFIG).read_text())
        assert "auto_map" not in json.loads((place / "tokenizer_config.json").read_text())
        assert isinstance(AutoModelForCausalLM.from_pretrained(place), PreTrainedModel)


class TestTokensWithoutARow:
    @pytest.fixture
    def path(self, save: Callable[..., Path], byte_tokenizer: PreTrainedTokenizerFast) -> Path:
        """A teacher of 257 rows whose tokenizer has token 257 for padding."""
        path = save(llama())
        tokenizer = copy.deepcopy(byte_tokenizer)
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        tokenizer.save_pretrained(path)
        return path

    def test_one_that_no_text_has_is_told(self, path: Path, caplog: Said) -> None:
        teacher = load(path)
        check_texts(["all is well"], teacher.tokenizer, teacher.rows, teacher.id)
        [line] = [line for line in caplog.messages if "beyond the 257 rows" in line]
        assert line.endswith("which no text may have: '<|pad|>' (257)")

    def test_a_text_that_has_one_is_refused_by_its_name(self, path: Path) -> None:
        teacher = load(path)
        with pytest.raises(InputError) as refusal:
            check_texts(["all is <|pad|> well"], teacher.tokenizer, teacher.rows, teacher.id)
        assert f"'<|pad|>' is token 257, and the table of {path} has 257 rows" in str(refusal.value)
        with pytest.raises(InputError, match="is token 300"):
            check_tokens([torch.tensor([[1, 2], [300, 3]])], teacher.tokenizer, teacher.rows, teacher.id)

    def test_one_that_every_document_has_is_refused_at_once(self, path: Path) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        tokenizer.add_special_tokens({"eos_token": "<|end|>"})
        tokenizer.save_pretrained(path)
        assert "'<|end|>' is token 258, and the table" in refused(path)

    def test_a_run_refuses_it_before_any_work(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
        text = tmp_path / "text.jsonl"
        rows = [{"text": f"Of {number} all is <|pad|> well."} for number in range(300)]
        text.write_text("\n".join(map(json.dumps, rows)))
        config = run_config(teacher=str(path), data=(str(text),), block=16, device="cpu", dtype="float32")
        with pytest.raises(InputError, match=r"'<\|pad\|>' is token 257"):
            preparation.load(config, cast(Console, SimpleNamespace(stage=lambda _: nullcontext())))


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("asked", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3"])
def test_attention_that_this_machine_lacks_is_computed_otherwise(
    field: str, asked: str, save: Callable[..., Path], tmp_path: Path, caplog: Said
) -> None:
    model = llama()
    path = save(model, **{field: asked})
    torch.testing.assert_close(logits(load(path).model), logits(model))
    line = f"{path} asks for {asked} in its config; it is computed by PyTorch's own means here"
    assert caplog.messages.count(line) == 1
    place = written(same_size(path), path, tmp_path / "student")
    assert asked not in (place / CONFIG).read_text()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(place)), logits(model))


@pytest.mark.parametrize("asked", ["eager", "sdpa"])
def test_attention_of_pytorch_s_own_is_kept(asked: str, save: Callable[..., Path]) -> None:
    assert load(save(llama(), attn_implementation=asked)).model.config._attn_implementation == asked
