"""Values of checkpoints: all are finite, in the file and after a cast; old buffers are passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluators.teacher.on_disk import teacher_on_disk
from tests.evaluators.teacher.checkpoints import (
    CONFIG,
    CPU,
    WEIGHTS,
    Said,
    Tensors,
    llama,
    load,
    logits,
    refused,
    save,
    written,
)
from tests.evaluators.tiny_models import tiny_model

__all__ = ["save"]


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
        load(path, torch.bfloat16)
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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_tensor_of_eight_bits_is_refused(save: Callable[..., Path], dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def narrow(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    text = refused(save(llama(), narrow))
    assert f"at least 16 bits; {name} of" in text
    assert f"is stored as {str(dtype).removeprefix('torch.')}" in text


@pytest.mark.parametrize("named", [1.5, "LlamaForCausalLM", ["LlamaForCausalLM", 3], {}])
def test_architectures_are_a_list_of_names(save: Callable[..., Path], named: object) -> None:
    text = refused(save(llama(), architectures=named))
    assert "architectures in config.json has to be a list of names of classes" in text
    assert repr(named) in text


@pytest.mark.parametrize("code", ["modeling.Own", ["modeling.Own"], {"AutoModelForCausalLM": "m.Own"}])
def test_whatever_code_is_named_the_class_of_transformers_takes_its_place(
    save: Callable[..., Path], code: object
) -> None:
    assert not hasattr(load(save(llama(), auto_map=code)).model.config, "auto_map")
