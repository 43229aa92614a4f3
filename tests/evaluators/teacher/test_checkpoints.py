"""Checkpoints as people have them: config and files at odds, old buffers, further layers, mixed precision."""

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
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from evaluators.teacher import Teacher, load_config, load_teacher
from evaluators.teacher.on_disk import teacher_on_disk
from evaluators.teacher.vocabulary import check_texts, check_tokens
from evaluators.teacher.writing import write_directory
from search.stages import preparation
from search.terminal.console import Console
from space.axes.config_fields import with_sizes
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import extract, model_from_weights, saved_tensors, sort_by_importance
from space.discovery.discovery import discover
from space.input_error import InputError
from space.verification.contract import random_ranking
from tests.evaluators.tiny_models import VOCABULARY, tiny_model
from tests.search.synthetic import run_config

CPU = torch.device("cpu")
TOKENS = torch.arange(24).view(2, 12) % VOCABULARY
WEIGHTS, CONFIG = "model.safetensors", "config.json"
Tensors = dict[str, Tensor]
Said = pytest.LogCaptureFixture

DEEPSEEK: dict[str, Any] = {
    "num_hidden_layers": 2,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "vocab_size": 257,
}


@pytest.fixture
def save(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    def saved(model: PreTrainedModel, change: Callable[[Tensors], object] = len, **fields: Any) -> Path:
        """A directory of the model, with its stored tensors and the fields of its config changed."""
        path = tmp_path / "teacher"
        model.save_pretrained(path)
        byte_tokenizer.save_pretrained(path)
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS, {"format": "pt"})
        config = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps(config | fields))
        return path

    return saved


def llama(**changes: Any) -> PreTrainedModel:
    return tiny_model("llama", **{"vocab_size": 257, **changes})


def load(path: Path, dtype: torch.dtype = torch.float32) -> Teacher:
    return load_teacher(str(path), revision=None, device=CPU, dtype=dtype)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refusal:
        load(path, **options)
    return str(refusal.value)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


def full_size_student(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The student of all sizes, cut as a run cuts it: from the config alone and the loaded teacher."""
    axis_map = discover(load_config(str(path))).axis_map
    ranking = random_ranking(axis_map, 0)
    tensors = saved_tensors(load(path, dtype).model, axis_map)
    return extract(sort_by_importance(tensors, axis_map, ranking), axis_map, ranking, axis_map.teacher)


def same_size(path: Path) -> PreTrainedModel:
    """A model of the teacher's weights by the config of a student, without the cutting."""
    return model_from_weights(with_sizes(load_config(str(path)), {}), load(path).model.state_dict())


def written(student: PreTrainedModel, path: Path, place: Path) -> Path:
    """The directory of a student, as a run writes it."""
    teacher = load(path)
    write_directory(student, teacher.tokenizer, teacher.stored_dtype, place, teacher.other_dtypes)
    return place


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
        assert parameter_polynomial(axis_map.given).of(axis_map.teacher) == apart.num_parameters()
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
        assert line.startswith(f"{path} has ")

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


class TestFiniteNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_row_that_no_text_touches(self, value: float, save: Callable[..., Path]) -> None:
        def spoil(tensors: Tensors) -> None:
            tensors["model.embed_tokens.weight"][250, 3:5] = value

        path = save(llama(), spoil)
        assert refused(path) == (
            "every value of a teacher's weights has to be finite; "
            f"model.embed_tokens.weight[250, 3] of {path} is {value} in {WEIGHTS}, and 1 more of its values "
            "are not finite. "
            "Compare the file with its source; if it is so there, only another checkpoint helps."
        )

    def test_a_value_that_the_precision_of_the_run_cannot_hold(self, save: Callable[..., Path]) -> None:
        def enlarge(tensors: Tensors) -> None:
            tensors["model.layers.1.mlp.up_proj.weight"][2, 1] = -70_000.0

        path = save(llama(), enlarge)
        assert load(path, torch.bfloat16)
        message = refused(path, dtype=torch.float16)
        assert (
            f"model.layers.1.mlp.up_proj.weight[2, 1] of {path} is -70000, more than float16 holds" in message
        )
        assert message.endswith("Give --dtype float32.")

    def test_a_student_too_large_for_float16_is_written_in_bfloat16(
        self, save: Callable[..., Path], tmp_path: Path, caplog: Said
    ) -> None:
        def halve(tensors: Tensors) -> None:
            tensors.update({name: values.half() for name, values in tensors.items()})

        path = save(llama(), halve, dtype="float16")
        student = load(path).model
        with torch.no_grad():
            student.get_parameter("model.layers.1.mlp.up_proj.weight")[2, 1] = 70_000.0
        stored = load_file(written(student, path, tmp_path / "student") / WEIGHTS)
        assert {values.dtype for values in stored.values()} == {torch.bfloat16}
        assert stored["model.layers.1.mlp.up_proj.weight"][2, 1] == torch.tensor(70_000.0).bfloat16()
        assert json.loads((tmp_path / "student" / CONFIG).read_text())["dtype"] == "bfloat16"
        assert (
            "values of model.layers.1.mlp.up_proj.weight are too large for torch.float16: "
            "the model is written in bfloat16"
        ) in caplog.messages


class TestOldBuffers:
    @pytest.mark.parametrize(
        ("model_type", "buffers"),
        [
            ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}),
            ("llama", {"model.layers.0.self_attn.rotary_emb.cos_cached": (1, 1, 64, 8)}),
            ("gpt2", {"transformer.h.0.attn.masked_bias": (), "transformer.h.0.attn.bias": (1, 1, 64, 64)}),
            ("gptj", {"transformer.h.1.attn.masked_bias": (), "transformer.h.1.attn.bias": (1, 1, 64, 64)}),
            ("opt", {"model.decoder.version": (1,)}),
            ("bloom", {"transformer.position_ids": (1, 64)}),
        ],
    )
    def test_they_are_ignored(
        self,
        model_type: str,
        buffers: dict[str, tuple[int, ...]],
        save: Callable[..., Path],
        caplog: Said,
    ) -> None:
        sizes = {"rotary_dim": 4} if model_type == "gptj" else {}
        model = tiny_model(model_type, vocab_size=257, **sizes)
        infinite = {name: torch.full(shape, float("-inf")) for name, shape in buffers.items()}
        path = save(model, lambda tensors: tensors.update(infinite))
        torch.testing.assert_close(logits(load(path).model), logits(model))
        with teacher_on_disk(path, CPU, torch.float32) as files:
            files.fetch(lambda _: True)
            torch.testing.assert_close(logits(files.model), logits(model))
        assert not [line for line in caplog.messages if "left out" in line]

    def test_a_bias_that_the_class_does_not_have_is_no_mask(self, save: Callable[..., Path]) -> None:
        bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
        path = save(llama(), lambda tensors: tensors.update(bias))
        assert "model.layers.0.self_attn.q_proj.bias have no place in the model" in refused(path)


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
        config = run_config(teacher=str(path), data=str(text), block=16, device="cpu", dtype="float32")
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
