from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils import logging as transformers_logging

from evaluators.teacher import Teacher, load_config, load_teacher
from space.input_error import InputError

CPU = torch.device("cpu")

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def teacher_copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def load(path: Path | str, **options: Any) -> Teacher:
    return load_teacher(str(path), **{"revision": None, "device": CPU, "dtype": torch.float32, **options})


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as refusal:
        load(path, **options)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_a_directory_is_loaded_as_it_was_saved(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher)
    assert teacher.id == str(tiny_teacher)
    assert teacher.revision is None
    assert teacher.stored_dtype == torch.float32
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.tokenizer.vocab_size == 257
    saved = load_file(tiny_teacher / "model.safetensors")
    loaded = teacher.model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_weights_are_loaded_in_the_type_that_is_wanted(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.bfloat16}
    assert teacher.stored_dtype == torch.float32


def test_the_stored_type_is_that_of_the_files(tiny_teacher: Path, tmp_path: Path) -> None:
    model = load(tiny_teacher).model.to(torch.bfloat16)  # type: ignore[arg-type]
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    model.save_pretrained(tmp_path / "teacher")
    assert load(tmp_path / "teacher").stored_dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_not_missing(
    tied: bool, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = GPT2Config(
        vocab_size=257, n_embd=8, n_layer=1, n_head=2, n_positions=32, tie_word_embeddings=tied
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    model = load(tmp_path).model
    assert isinstance(model, GPT2LMHeadModel)
    assert (model.lm_head.weight is model.transformer.wte.weight) is tied


class TestFingerprint:
    def test_it_does_not_depend_on_the_place_or_the_shards(self, tiny_teacher: Path, tmp_path: Path) -> None:
        teacher = load(tiny_teacher)
        moved = shutil.copytree(tiny_teacher, tmp_path / "moved")
        sharded = shutil.copytree(tiny_teacher, tmp_path / "sharded")
        split_in_two(sharded)
        assert len(teacher.fingerprint) == 64
        assert load(moved).fingerprint == load(sharded).fingerprint == teacher.fingerprint

    @pytest.mark.parametrize("part", ["first", "middle", "last"])
    def test_it_sees_a_change_in_a_large_tensor(self, part: str, teacher_copy: Path) -> None:
        config = LlamaConfig.from_pretrained(teacher_copy)
        config.vocab_size = 20_000
        LlamaForCausalLM(config).save_pretrained(teacher_copy)
        before = load(teacher_copy).fingerprint
        tensors = load_file(teacher_copy / "model.safetensors")
        flat = tensors["lm_head.weight"].view(-1)
        flat[{"first": 0, "middle": len(flat) // 2, "last": len(flat) - 1}[part]] += 1
        save_file(tensors, teacher_copy / "model.safetensors", {"format": "pt"})
        assert load(teacher_copy).fingerprint != before

    def test_it_sees_a_change_of_the_config(self, tiny_teacher: Path, teacher_copy: Path) -> None:
        change_config(teacher_copy, rms_norm_eps=1e-3)
        assert load(teacher_copy).fingerprint != load(tiny_teacher).fingerprint


class TestConfigAlone:
    def test_a_directory_with_nothing_else_will_do(self, tiny_teacher: Path, tmp_path: Path) -> None:
        shutil.copy(tiny_teacher / "config.json", tmp_path)
        config = load_config(str(tmp_path))
        assert config.to_dict() == {**AutoConfig.from_pretrained(tiny_teacher).to_dict(), **name_of(config)}

    def test_a_config_that_names_no_architecture_will_do(self, tmp_path: Path) -> None:
        LlamaConfig().save_pretrained(tmp_path)
        assert isinstance(load_config(str(tmp_path)), LlamaConfig)

    def test_it_is_no_teacher(self, tiny_teacher: Path, tmp_path: Path) -> None:
        shutil.copy(tiny_teacher / "config.json", tmp_path)
        message = refused(tmp_path)
        assert f"{tmp_path} has none (config.json is enough for --plan alone)" in message
        assert "lie beside its config in model.safetensors" in message


def split_in_two(directory: Path) -> None:
    """Weights in two shards, of which the first holds what comes last."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[10:], "model-00002-of-00002.safetensors": names[:10]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def name_of(config: Any) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key == "_name_or_path"}


class TestRefusals:
    def test_no_such_path(self, teacher_copy: Path) -> None:
        message = refused(teacher_copy.with_name("techer"))
        assert message.startswith("a teacher is a directory or a hub id; ")
        assert f"{teacher_copy.with_name('techer')} does not exist (did you mean {teacher_copy}?)" in message

    def test_a_file(self, teacher_copy: Path) -> None:
        assert f"{teacher_copy / 'config.json'} is a file" in refused(teacher_copy / "config.json")

    def test_a_revision_of_a_directory(self, teacher_copy: Path) -> None:
        message = refused(teacher_copy, revision="v1")
        assert f"{teacher_copy} is a directory, and the revision given is v1" in message

    def test_no_config(self, teacher_copy: Path) -> None:
        (teacher_copy / "config.json").unlink()
        assert f"with a config.json; {teacher_copy} has no config.json." in refused(teacher_copy)

    def test_an_adapter(self, teacher_copy: Path) -> None:
        (teacher_copy / "adapter_config.json").write_text("{}")
        assert f"{teacher_copy} is an adapter. Merge it" in refused(teacher_copy)

    @pytest.mark.parametrize("content", ["{", "[]", "\xff"])
    def test_a_config_that_is_no_json(self, content: str, teacher_copy: Path) -> None:
        (teacher_copy / "config.json").write_text(content, encoding="latin-1")
        assert "config.json has to be" in refused(teacher_copy)

    def test_a_config_with_a_wrong_value(self, teacher_copy: Path) -> None:
        change_config(teacher_copy, hidden_size="wide")
        message = refused(teacher_copy)
        assert "config.json has to be one that transformers reads" in message
        assert "hidden_size" in message

    @pytest.mark.parametrize(
        ("config", "found"),
        [
            (BertConfig(), "of the type bert"),
            (BertConfig(architectures=["BertForMaskedLM"]), "a BertForMaskedLM"),
            (BertConfig(architectures=["BertLMHeadModel"]), "a BertLMHeadModel"),
            (T5Config(), "(t5) has an encoder and a decoder"),
            (LlamaConfig(architectures=["LlamaModel"]), "a LlamaModel"),
            (
                LlamaConfig(architectures=["LlamaForSequenceClassification"]),
                "a LlamaForSequenceClassification",
            ),
        ],
    )
    def test_no_causal_language_model(self, config: Any, found: str, tmp_path: Path) -> None:
        config.save_pretrained(tmp_path)
        for attempt in (load_config, load):
            with pytest.raises(InputError, match="a teacher is a causal language model") as refusal:
                attempt(str(tmp_path))
            assert found in str(refusal.value)

    def test_a_decoder_of_the_bert_family_is_a_causal_language_model(self, tmp_path: Path) -> None:
        BertConfig(architectures=["BertLMHeadModel"], is_decoder=True).save_pretrained(tmp_path)
        assert load_config(str(tmp_path)).model_type == "bert"

    def test_a_quantised_checkpoint(self, teacher_copy: Path) -> None:
        change_config(teacher_copy, quantization_config={"quant_method": "gptq", "bits": 4})
        message = refused(teacher_copy)
        assert f"multiplied out; {teacher_copy} is quantised (gptq). Name the model it was" in message

    def test_weights_of_less_than_16_bits(self, teacher_copy: Path) -> None:
        tensors = load_file(teacher_copy / "model.safetensors")
        eight_bits = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
        save_file(eight_bits, teacher_copy / "model.safetensors", {"format": "pt"})
        assert f"those of {teacher_copy} are torch.float8_e4m3fn" in refused(teacher_copy)

    def test_an_unknown_type(self, teacher_copy: Path) -> None:
        change_config(teacher_copy, model_type="lama")
        assert f"{teacher_copy} has the model_type lama" in refused(teacher_copy)

    def test_code_of_its_own(self, teacher_copy: Path) -> None:
        change_config(teacher_copy, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
        (teacher_copy / "own.py").write_text("raise SystemExit('this ran')")
        message = refused(teacher_copy)
        assert f"{teacher_copy} is of the type own, which transformers does not have" in message
        assert message.endswith("Read that code, then give --trust-remote-code.")

    def test_code_of_its_own_runs_once_it_is_trusted(
        self, teacher_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modules = teacher_copy.with_name("modules")
        modules.mkdir()
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        monkeypatch.syspath_prepend(str(modules))
        auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
        change_config(teacher_copy, model_type="own", architectures=["OwnForCausalLM"], auto_map=auto_map)
        (teacher_copy / "own.py").write_text(OWN_CODE)
        model = load(teacher_copy, trust_remote_code=True).model
        assert type(model).__name__ == "OwnForCausalLM"

    def test_no_weights_of_the_right_kind(self, teacher_copy: Path) -> None:
        (teacher_copy / "model.safetensors").rename(teacher_copy / "pytorch_model.bin")
        message = refused(teacher_copy)
        assert f"{teacher_copy} has only pytorch_model.bin. Save the model with `save_pretrained`" in message

    @pytest.mark.parametrize("damage", [0.5, 0.0])
    def test_a_torn_weight_file(self, damage: float, teacher_copy: Path) -> None:
        path = teacher_copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(damage * path.stat().st_size)])
        assert f"have to be whole safetensors files; {path} cannot be read (" in refused(teacher_copy)

    def test_a_pointer_in_place_of_a_weight_file(self, teacher_copy: Path) -> None:
        path = teacher_copy / "model.safetensors"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12345\n")
        assert "a git clone without git-lfs leaves only pointers" in refused(teacher_copy)

    def test_a_missing_shard(self, teacher_copy: Path) -> None:
        split_in_two(teacher_copy)
        (teacher_copy / "model-00001-of-00002.safetensors").unlink()
        assert f"{teacher_copy} lacks model-00001-of-00002.safetensors." in refused(teacher_copy)

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight are missing"),
            (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra have no place in the model"),
            (
                lambda tensors: tensors.update({"lm_head.weight": torch.zeros(256, 16)}),
                "lm_head.weight ((256, 16) stored, (257, 16) by the config) have another shape",
            ),
        ],
    )
    def test_weights_that_do_not_fit_the_config(
        self, change: Callable[[dict[str, torch.Tensor]], object], found: str, teacher_copy: Path
    ) -> None:
        tensors = load_file(teacher_copy / "model.safetensors")
        change(tensors)
        save_file(tensors, teacher_copy / "model.safetensors", {"format": "pt"})
        assert f"of {teacher_copy}'s tensors {found}. Check" in refused(teacher_copy)

    def test_many_misfits_are_counted(self, teacher_copy: Path) -> None:
        change_config(teacher_copy, num_hidden_layers=3)
        assert "and 6 more are missing" in refused(teacher_copy)

    def test_no_tokenizer(self, teacher_copy: Path) -> None:
        (teacher_copy / "tokenizer.json").unlink()
        message = refused(teacher_copy)
        assert f"a teacher comes with its tokenizer; {teacher_copy} has no tokenizer.json" in message

    def test_a_tokenizer_that_cannot_be_read(self, teacher_copy: Path) -> None:
        (teacher_copy / "tokenizer.json").write_text("{")
        assert "tokenizer has to be one that transformers loads" in refused(teacher_copy)

    def test_a_tokenizer_of_another_model(self, teacher_copy: Path) -> None:
        config = LlamaConfig.from_pretrained(teacher_copy)
        config.vocab_size = 200
        LlamaForCausalLM(config).save_pretrained(teacher_copy)
        assert f"the tokenizer of {teacher_copy} has 257 tokens, the model 200" in refused(teacher_copy)

    def test_nothing_is_loaded_before_the_tokenizer_is_found(
        self, teacher_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (teacher_copy / "tokenizer.json").unlink()
        monkeypatch.setattr("evaluators.teacher.loading._load_model", lambda *_: pytest.fail("loaded"))
        refused(teacher_copy)


class TestQuiet:
    def test_loading_says_nothing(
        self,
        teacher_copy: Path,
        said_by_libraries: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        load(teacher_copy)
        tensors = load_file(teacher_copy / "model.safetensors")
        tensors.pop("lm_head.weight")
        save_file(tensors, teacher_copy / "model.safetensors", {"format": "pt"})
        refused(teacher_copy)
        printed = capfd.readouterr()
        assert printed.out + printed.err + said_by_libraries.text == ""

    def test_the_users_settings_stay(self, teacher_copy: Path) -> None:
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity(logging.INFO)
        handlers = list(logging.getLogger("transformers").handlers)
        try:
            load(teacher_copy)
            refused(teacher_copy / "config.json")
            assert transformers_logging.get_verbosity() == logging.INFO
            assert logging.getLogger("transformers").handlers == handlers
            assert transformers_logging.is_progress_bar_enabled()
            assert not are_progress_bars_disabled()
        finally:
            transformers_logging.set_verbosity(before)


def test_real_stories_cost_the_real_teacher_what_they_should(real: Path) -> None:
    """1.23 nats per token is the figure that came with the data, from an independent forward pass."""
    teacher = load(real / "stories260K")
    text = (real / "tinystories.txt").read_text(encoding="utf-8")
    stories = text.split("\n\nOnce upon a time")[1:201]
    assert len(stories) == 200
    total_nats, total_tokens = 0.0, 0
    for story in stories:
        lines = re.sub(r"\n+", "\n", f"Once upon a time{story}").strip()
        tokens = teacher.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
        ids = torch.tensor([[teacher.tokenizer.bos_token_id, *tokens]])[:, :512]
        with torch.inference_mode():
            loss = teacher.model(input_ids=ids, labels=ids).loss
        total_nats += loss.item() * (ids.numel() - 1)
        total_tokens += ids.numel() - 1
    assert total_nats / total_tokens == pytest.approx(1.23, abs=0.03)
