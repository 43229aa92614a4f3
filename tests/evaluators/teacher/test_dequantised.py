"""Quantised checkpoints: what is multiplied out is what the formats mean, and what transformers reads."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel
from transformers.utils.quantization_config import Mxfp4Config

from evaluators.teacher import load_config, quantised, shards
from evaluators.teacher.quantised import multiply_out
from search.settings.resolution import _stored_bytes
from tests.evaluators.teacher.checkpoints import (
    CONFIG,
    DEEPSEEK,
    WEIGHTS,
    Said,
    Tensors,
    full_size_student,
    llama,
    load,
    logits,
    refused,
    save,
    written,
)
from tests.evaluators.tiny_models import tiny_model

__all__ = ["save"]
Save = Callable[..., Path]
FP8 = torch.float8_e4m3fn
BLOCK = [16, 16]
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": BLOCK}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dequantised"


def is_matrix(name: str, values: Tensor) -> bool:
    return "proj" in name and name.endswith("weight") and values.ndim == 2


def in_blocks(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in 8 bits, the scale of each block, and what both mean, block by block."""
    grid = torch.zeros(math.ceil(weight.shape[0] / rows), math.ceil(weight.shape[1] / columns))
    narrow, meant = torch.zeros_like(weight, dtype=FP8), torch.zeros_like(weight)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            grid[i, j] = weight[place].abs().max() / 448
            narrow[place] = (weight[place] / grid[i, j]).to(FP8)
            meant[place] = narrow[place].float() * grid[i, j]
    return narrow, grid, meant


class InBlocks:
    """Changes the tensors of a checkpoint into 8 bits; keeps what they mean."""

    def __init__(self, rows: int = BLOCK[0], columns: int = BLOCK[1]) -> None:
        self.rows, self.columns = rows, columns
        self.meant: Tensors = {}

    def __call__(self, tensors: Tensors) -> None:
        for name, values in list(tensors.items()):
            self.meant[name] = values
            if is_matrix(name, values):
                tensors[name], scale, self.meant[name] = in_blocks(values, self.rows, self.columns)
                tensors[f"{name}_scale_inv"] = scale


def same_as(model: PreTrainedModel, tensors: Tensors) -> None:
    """The model has these tensors, rounded to its own dtype."""
    state = model.state_dict()
    for name, values in tensors.items():
        assert torch.equal(state[name], values.to(state[name].dtype)), name


class TestBlocksInEightBits:
    def test_blocks_mean_what_they_should(self, save: Save) -> None:
        change = InBlocks()
        path = save(llama(dtype="float32"), change, quantization_config=BLOCKS, dtype="float32")
        teacher = load(path)
        same_as(teacher.model, change.meant)
        assert teacher.stored_dtype == torch.float32
        student = full_size_student(path)
        torch.testing.assert_close(logits(student), logits(teacher.model))

    def test_as_transformers_reads_it(self, save: Save) -> None:
        """Where blocks divide the matrix evenly: it takes them for smaller where they do not."""
        even = llama(intermediate_size=32, head_dim=16)
        path = save(even, InBlocks(), quantization_config=BLOCKS, dtype="bfloat16")
        how = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
        wanted = AutoModelForCausalLM.from_pretrained(path, quantization_config=how, dtype=torch.bfloat16)
        same_as(load(path, torch.bfloat16).model, wanted.state_dict())

    def test_blocks_at_the_edge_are_smaller(self, save: Save) -> None:
        change = InBlocks(12, 20)
        how = BLOCKS | {"weight_block_size": [12, 20]}
        path = save(llama(), change, quantization_config=how, dtype="float32")
        assert any(size % 12 for values in change.meant.values() for size in values.shape[:1])
        same_as(load(path).model, change.meant)

    def test_a_mixture_whose_experts_are_stored_one_by_one(self, save: Save) -> None:
        model = tiny_model("deepseek_v3", **DEEPSEEK)
        change = InBlocks()
        path = save(model, change, quantization_config=BLOCKS, dtype="float32")
        assert any("experts.0.down_proj.weight_scale_inv" in name for name in load_file(path / WEIGHTS))
        plain = save(model, dtype="float32")
        save_file(change.meant, plain / WEIGHTS, {"format": "pt"})
        config = json.loads((plain / CONFIG).read_text())
        (plain / CONFIG).write_text(json.dumps(config))
        wanted = AutoModelForCausalLM.from_pretrained(plain)
        save(model, InBlocks(), quantization_config=BLOCKS, dtype="float32")
        torch.testing.assert_close(logits(load(path).model), logits(wanted))

    def test_one_scale_for_a_tensor_and_scales_of_activations(self, save: Save) -> None:
        meant: Tensors = {}

        def change(tensors: Tensors) -> None:
            for name, values in list(tensors.items()):
                meant[name] = values
                if is_matrix(name, values):
                    scale = values.abs().max() / 448
                    tensors[name] = (values / scale).to(FP8)
                    tensors[f"{name}_scale_inv"] = scale
                    tensors[name.replace("weight", "activation_scale")] = torch.tensor(2.0)
                    meant[name] = tensors[name].float() * scale

        how = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
        same_as(load(save(llama(), change, quantization_config=how, dtype="float32")).model, meant)

    def test_a_scale_for_each_row(self, save: Save) -> None:
        change = InBlocks(1, 10**6)

        def by_rows(tensors: Tensors) -> None:
            change(tensors)
            for name in [name for name in tensors if name.endswith("_scale_inv")]:
                tensors[name.removesuffix("_inv")] = tensors.pop(name)

        path = save(llama(), by_rows, quantization_config={"quant_method": "fbgemm_fp8"}, dtype="float32")
        same_as(load(path).model, change.meant)

    def test_a_scale_in_another_file(self, save: Save) -> None:
        change = InBlocks()
        path = save(llama(), change, quantization_config=BLOCKS, dtype="float32")
        tensors = load_file(path / WEIGHTS)
        places = {name: f"part-{name.endswith('_inv')}.safetensors" for name in tensors}
        for place in set(places.values()):
            save_file({name: tensors[name] for name in tensors if places[name] == place}, path / place)
        (path / WEIGHTS).unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        same_as(load(path).model, change.meant)

    def test_a_scale_that_is_missing(self, save: Save) -> None:
        def change(tensors: Tensors) -> None:
            InBlocks()(tensors)
            del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]

        message = refused(save(llama(), change, quantization_config=BLOCKS, dtype="float32"))
        assert "model.layers.0.mlp.up_proj.weight of" in message
        assert "is stored as float8_e4m3fn" in message

    def test_scales_that_do_not_fit(self, save: Save, cache: Path) -> None:
        def change(tensors: Tensors) -> None:
            InBlocks()(tensors)
            tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(7, 3)

        message = refused(save(llama(), change, quantization_config=BLOCKS, dtype="float32"))
        assert "model.layers.0.mlp.up_proj.weight of" in message
        assert "cannot be multiplied out from" in message
        assert not list(cache.iterdir())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_number_has_the_scale_of_its_block(
    rows: int, columns: int, high: int, wide: int, data: st.DataObject
) -> None:
    size = (
        rows * high - data.draw(st.integers(0, high - 1)),
        columns * wide - data.draw(st.integers(0, wide - 1)),
    )
    weight = torch.randn(size).to(FP8)
    scale = torch.randn(rows, columns)
    found = multiply_out(weight, scale, [high, wide])
    for i in range(size[0]):
        for j in range(size[1]):
            assert found[i, j] == weight[i, j].float() * scale[i // high, j // wide]


def test_bytes_are_exponents() -> None:
    weight, scale = torch.ones(4, 4).to(FP8), torch.tensor([[127, 128], [126, 130]], dtype=torch.uint8)
    wanted = torch.tensor([[1.0, 2.0], [0.5, 8.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(multiply_out(weight, scale), wanted)


class TestMxfp4:
    HOW: ClassVar = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    #: The sixteen numbers of the format, by their code (Open Compute Project, Microscaling Formats 1.0).
    VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)

    def pack(self, tensors: Tensors) -> Tensors:
        """Random codes and exponents in place of the experts' matrices; what they mean."""
        generator, meant = torch.Generator().manual_seed(0), {}
        for name, values in list(tensors.items()):
            if not name.endswith(("gate_up_proj", "down_proj")):
                continue
            experts, inputs, outputs = values.shape
            codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=generator)
            exponents = torch.randint(118, 124, (experts, outputs, inputs // 32), generator=generator)
            tensors[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            tensors[f"{name}_scales"] = exponents.to(torch.uint8)
            del tensors[name]
            numbers = torch.tensor(self.VALUES)[codes] * 2.0 ** (exponents[..., None] - 127)
            meant[name] = numbers.reshape(experts, outputs, inputs).transpose(1, 2)
        return meant

    def test_codes_and_exponents(self, save: Save) -> None:
        meant: Tensors = {}
        model = tiny_model("gpt_oss", vocab_size=257, hidden_size=32, intermediate_size=32)
        path = save(
            model,
            lambda tensors: meant.update(self.pack(tensors)),
            quantization_config=self.HOW,
            dtype="bfloat16",
        )
        assert len(meant) == 2 * model.config.num_hidden_layers
        teacher = load(path)
        assert teacher.stored_dtype == torch.bfloat16
        same_as(teacher.model, meant)
        how = Mxfp4Config(dequantize=True)
        theirs = AutoModelForCausalLM.from_pretrained(path, quantization_config=how, dtype=torch.float32)
        # transformers 5.17 leaves the experts in bfloat16.
        torch.testing.assert_close(logits(teacher.model), logits(theirs.float()))


class TestCompressedTensors:
    """Compressed by the package itself, from matrices whose rounding is known by its own formula."""

    @staticmethod
    def described(format: str, weights: dict[str, Any]) -> dict[str, Any]:
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }

    def compressed(self, how: dict[str, Any]) -> tuple[Callable[[Tensors], None], Tensors]:
        """A change of a checkpoint's tensors, and what they mean afterwards."""
        compressors = pytest.importorskip("compressed_tensors.compressors")
        schemes = pytest.importorskip("compressed_tensors.quantization")
        scheme = schemes.QuantizationConfig.model_validate(how).config_groups["group_0"]
        compressor = compressors.BaseCompressor.get_value_from_registry(how["format"])
        weights, meant = how["config_groups"]["group_0"]["weights"], {}

        def change(tensors: Tensors) -> None:
            for name, values in list(tensors.items()):
                meant[name] = values
                if not is_matrix(name, values):
                    continue
                groups = values.unflatten(1, (-1, weights.get("group_size") or values.shape[1]))
                most = 448 if weights["type"] == "float" else 2 ** (weights["num_bits"] - 1) - 1
                scale = groups.abs().amax(-1) / most
                numbers = groups / scale[..., None]
                rounded = numbers.to(FP8).float() if weights["type"] == "float" else numbers.round()
                meant[name] = (rounded * scale[..., None]).flatten(1)
                parts = compressor.compress({"weight": tensors.pop(name), "weight_scale": scale}, scheme)
                module = name.removesuffix("weight")
                tensors.update({f"{module}{part}": one.contiguous() for part, one in parts.items()})

        return change, meant

    @pytest.mark.parametrize(
        ("format", "weights"),
        [
            ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}),
            ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
            ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
            ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ],
        ids=["int4 in groups", "int8 packed", "int8", "float8"],
    )
    def test_what_it_compressed(self, format: str, weights: dict[str, Any], save: Save) -> None:
        how = self.described(format, {"symmetric": True, "dynamic": False, **weights})
        change, meant = self.compressed(how)
        path = save(llama(), change, quantization_config=how, dtype="float32")
        packed = any(name.endswith("down_proj.weight_packed") for name in load_file(path / WEIGHTS))
        assert packed is (format == "pack-quantized")
        state = load(path).model.state_dict()
        for name, values in meant.items():
            torch.testing.assert_close(state[name], values, rtol=1e-5, atol=1e-7)

    def test_without_the_package(self, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantised, "find_spec", lambda name: None)
        how = self.described("pack-quantized", {"num_bits": 4, "type": "int"})
        assert "pip install compressed-tensors" in refused(save(llama(), quantization_config=how))

    @pytest.mark.parametrize(
        ("field", "word"),
        [
            ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
            ({"transform_config": {"a": 1}}, "rotat"),
        ],
    )
    def test_what_it_does_beside_is_refused(self, field: dict[str, Any], word: str, save: Save) -> None:
        how = self.described("pack-quantized", {"num_bits": 4, "type": "int"}) | field
        assert word in refused(save(llama(), quantization_config=how))


class TestTheDirectory:
    def test_it_is_written_once_and_said(self, save: Save, cache: Path, caplog: Said) -> None:
        path = save(llama(), InBlocks(), quantization_config=BLOCKS, dtype="bfloat16")
        with caplog.at_level(logging.INFO):
            first = load(path)
            assert f"{path} is quantised: multiplied out once, to {first.directory}" in caplog.text
            caplog.clear()
            assert load(path).directory == first.directory
        assert "multiplied out" not in caplog.text
        assert list(cache.iterdir()) == [first.directory]
        assert first.id == str(path)

    def test_it_is_ordinary(self, save: Save, tmp_path: Path) -> None:
        path = save(llama().bfloat16(), InBlocks(), quantization_config=BLOCKS, dtype="bfloat16")
        (path / "LICENSE").write_text("Do as you like.")
        teacher = load(path, torch.bfloat16)
        assert (teacher.directory / "LICENSE").read_text() == "Do as you like."
        assert (teacher.directory / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()
        assert "quantization_config" not in json.loads((teacher.directory / CONFIG).read_text())
        ordinary = AutoModelForCausalLM.from_pretrained(teacher.directory)
        assert torch.equal(logits(ordinary), logits(teacher.model))
        student = written(full_size_student(path, torch.bfloat16), path, tmp_path / "student")
        assert "quantization_config" not in json.loads((student / CONFIG).read_text())
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(student)), logits(teacher.model))

    def test_large_ones_are_written_in_shards(self, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
        change = InBlocks()
        teacher = load(save(llama(), change, quantization_config=BLOCKS, dtype="float32"))
        assert len(list(teacher.directory.glob("model-*.safetensors"))) > 3
        same_as(teacher.model, change.meant)

    def test_a_full_disk(self, save: Save, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(llama(), InBlocks(), quantization_config=BLOCKS, dtype="bfloat16")
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
        assert "SLIMSEARCH_CACHE=DIR" in refused(path)
        assert not list(cache.iterdir())

    def test_a_plan_needs_the_config_alone(self, save: Save, cache: Path) -> None:
        path = save(llama().bfloat16(), InBlocks(), quantization_config=BLOCKS, dtype="bfloat16")
        config = load_config(str(path))
        assert not hasattr(config, "quantization_config")
        assert _stored_bytes(str(path), config) == 2
        (path / WEIGHTS).unlink()
        assert not hasattr(load_config(str(path)), "quantization_config")
        assert not cache.exists()
