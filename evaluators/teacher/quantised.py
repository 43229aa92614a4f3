"""Weights that are stored in few bits, and how they are multiplied out.

Read are 8-bit floating point with scales beside it (for a whole tensor, for each row, or for each block, as
DeepSeek, Qwen, Mistral and Llama are published), MXFP4 (gpt-oss: 4-bit floating point, 32 numbers to a power
of two), and the formats of the package compressed-tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

#: Methods whose weights can be multiplied out, by their names in configs.
METHODS = ("fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors")
_FIELDS = ("quantization_config", "compression_config")
_COMPRESSED = "compressed-tensors"
_NEEDED = "compressed_tensors"
#: What scales of activations and of caches are called; they are no weights.
_NO_WEIGHT = re.compile(r"[._](activation|input|output|[qkv])_(scale(_inv|_ub)?|zero_point|global_scale)$")
#: What is stored of a matrix by compressed-tensors, behind the name of its module.
_PARTS = ("weight", *(f"weight_{part}" for part in ("packed", "scale", "zero_point", "shape", "g_idx")))
_PARTS += ("weight_global_scale",)
_FIELDS_OF_SCHEMES = ("config_groups", "quant_method", "format", "quantization_status", "ignore")
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def quantisation_of(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what config.json, as it was read, says of how weights are quantised; None if nothing."""
    found = next((part[name] for part in _parts(described) for name in _FIELDS if part.get(name)), None)
    return found if found is None or isinstance(found, dict) else {"quant_method": str(found)}


def without_quantisation(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as it is for weights in floating point."""
    kept = {name: value for name, value in described.items() if name not in _FIELDS}
    if isinstance(text := kept.get("text_config"), dict):
        kept["text_config"] = {name: value for name, value in text.items() if name not in _FIELDS}
    return kept


def check_quantised(described: Mapping[str, Any], id: str) -> None:
    """Refuse a model whose weights cannot be multiplied out; ``described`` is the content of config.json.

    Raises:
        InputError: its method is none of ``METHODS``, or the package that reads it is not here.
    """
    how = quantisation_of(described)
    if how is None:
        return
    method = how.get("quant_method")
    sparsity = how.get("sparsity_config")
    sparse = bool(sparsity) and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense")
    if method not in METHODS or sparse or how.get("transform_config"):
        also = " with sparse weights" if sparse else " with rotations" if how.get("transform_config") else ""
        raise InputError(
            "a teacher's weights are stored in floating point, or can be multiplied out",
            f"{id} is quantised{f' ({method})' if method else ''}{also}",
            f"Name the model it was made from; {', '.join(METHODS)} can be read",
        )
    if method == _COMPRESSED and find_spec(_NEEDED) is None:
        raise InputError(
            f"weights of {_COMPRESSED} are read by the package of this name",
            f"those of {id} are such, and it is not installed",
            f"Install it (`pip install {_COMPRESSED}`), or name the model it was made from",
        )


def forget_quantisation(config: PretrainedConfig) -> None:
    """Take out of a config, in place, how its weights are quantised."""
    for part in (config, config.get_text_config(decoder=True)):
        fields = getattr(part, "__dict__", {})  # a config.json may state anything as a part
        for name in _FIELDS:
            fields.pop(name, None)


def _parts(described: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    text = described.get("text_config")
    return [described, text] if isinstance(text, dict) else [described]


class QuantisedWeights:
    """The weights of a model in files of which some are quantised.

    Attributes:
        names: of the weights, as they would be called in files of floating point.
        dtype: in which quantised ones are multiplied out: that of the config, or bfloat16.
    """

    def __init__(self, dtypes: Mapping[str, str], described: Mapping[str, Any], id: str) -> None:
        """Find the weights.

        Args:
            dtypes: of every stored tensor, as safetensors names them, by name.
            described: the content of config.json.
            id: the model's name in messages.
        """
        self._id, self._how = id, quantisation_of(described) or {}
        named = [part.get(name) for part in reversed(_parts(described)) for name in ("dtype", "torch_dtype")]
        self.dtype = next((_DTYPES[str(one)] for one in named if str(one) in _DTYPES), torch.bfloat16)
        compressed = self._how.get("quant_method") == _COMPRESSED
        self._sources = _compressed(dtypes) if compressed else _scaled(dtypes) | _packed(dtypes)
        parts = {part for source in self._sources.values() for part in source}
        others = (name for name in dtypes if name not in parts and not _NO_WEIGHT.search(name))
        self.names: Sequence[str] = sorted({*self._sources, *others})

    def read(self, name: str, stored: Mapping[str, Tensor]) -> Tensor:
        """Return a weight; quantised ones are multiplied out, others are as they are stored.

        Args:
            name: one of ``names``.
            stored: the tensors of the files by name.

        Raises:
            InputError: the scales do not fit the weight.
        """
        if name not in self._sources:
            return stored[name]
        parts = [stored[part] for part in self._sources[name]]
        try:
            if self._how.get("quant_method") == _COMPRESSED:
                names = [part.rpartition(".")[2] for part in self._sources[name]]
                values = self._decompress(name, dict(zip(names, parts, strict=True)))
            elif parts[0].dtype == torch.uint8:
                blocks, exponents = parts
                values = convert_moe_packed_tensors(
                    blocks, exponents
                )  # in bfloat16, which holds them exactly
            else:
                weight, scale = parts
                values = multiply_out(weight, scale, self._how.get("weight_block_size"))
        except Exception as error:  # anything can be wrong with a user's files
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise InputError(
                "quantised weights and their scales have to fit each other",
                f"{name} of {self._id} cannot be multiplied out from {shapes}: {short_message(error)}",
                "Get the files again, or name the model that it was made from",
            ) from error
        return values.to(self.dtype).contiguous()

    def _decompress(self, name: str, parts: dict[str, Tensor]) -> Tensor:
        """Multiply out by the package's own code."""
        schemes = import_module(f"{_NEEDED}.quantization")
        compressors = import_module(f"{_NEEDED}.compressors")
        described = {key: value for key, value in self._how.items() if key in _FIELDS_OF_SCHEMES}
        config = schemes.QuantizationConfig.model_validate(described)
        scheme = _scheme_of(name.rpartition(".")[0], list(config.config_groups.values()))
        format = getattr(scheme.format, "value", scheme.format) or config.format
        compressor = compressors.BaseCompressor.get_value_from_registry(format)
        values: Tensor = compressor.decompress(parts, scheme)["weight"]
        return values


def _scheme_of(module: str, schemes: Sequence[Any]) -> Any:
    """Return the scheme of a module: one that names it, else one that names its class."""
    for scheme in schemes:
        for target in scheme.targets:
            pattern = target.removeprefix("re:")
            if re.match(pattern, module) if pattern != target else module.endswith(target):
                return scheme
    by_class = (one for one in schemes if any(not target.startswith("re:") for target in one.targets))
    return next(by_class, schemes[0])


def _scaled(dtypes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the weights in 8-bit floating point, each with its scale."""
    found: dict[str, tuple[str, ...]] = {}
    for name, dtype in dtypes.items():
        if dtype.startswith("F8"):
            module = name.removesuffix("weight")
            scales = (f"{name}_scale_inv", f"{name}_scale", f"{module}scale")
            if scale := next((one for one in scales if one in dtypes), None):
                found[name] = (name, scale)
    return found


def _packed(dtypes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the weights in MXFP4, each with its blocks and its exponents."""
    ends = ("_blocks", "_scales")
    stems = {name.removesuffix(ends[0]) for name in dtypes if name.endswith(ends[0])}
    pairs: dict[str, tuple[str, ...]] = {stem: (stem + ends[0], stem + ends[1]) for stem in stems}
    return {stem: pair for stem, pair in pairs.items() if all(dtypes.get(one) == "U8" for one in pair)}


def _compressed(dtypes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the weights that compressed-tensors compressed, each with all that is stored of it."""
    stored = set(dtypes)
    ends = (".weight_scale", ".weight_packed")
    modules = {name.rpartition(".")[0] for name in stored if name.endswith(ends)}
    parts = {module: [f"{module}.{part}" for part in _PARTS] for module in modules}
    return {f"{module}.weight": tuple(stored.intersection(names)) for module, names in parts.items()}


def multiply_out(weight: Tensor, scale: Tensor, block: Sequence[int] | None = None) -> Tensor:
    """Return a weight in float32 from numbers of few bits and scales.

    Args:
        weight: numbers, shape (…, rows, columns).
        scale: one number, one for each row (rows,), a tensor that broadcasts, or one for each block
            (…, blocks of rows, blocks of columns). Bytes are exponents of two, 127 being zero.
        block: rows and columns of a block; without it, blocks divide the weight evenly.

    Raises:
        ValueError: there are not as many scales as rows or blocks.
    """
    factors = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    if factors.ndim == 1 and len(factors) == weight.shape[-2] and weight.ndim > 1:
        factors = factors[:, None]
    sizes = zip(weight.shape[-2:], factors.shape[-2:], strict=False)
    if factors.ndim == weight.ndim and not all(count in (1, size) for size, count in sizes):
        factors = _spread(factors, weight.shape[-2:], block)
    return weight.float() * factors


def _spread(factors: Tensor, shape: Sequence[int], block: Sequence[int] | None) -> Tensor:
    """Repeat the factor of each block for the rows and columns of it; the last block may be a part of one."""
    for dim, size in zip((-2, -1), shape, strict=True):
        count = factors.shape[dim]
        each = block[dim] if block else size // count
        if math.ceil(size / each) != count or not (block or size % count == 0):
            raise ValueError(f"{count} scales for {size} rows or columns in blocks of {each}")
        factors = factors.repeat_interleave(each, dim).narrow(dim, 0, size)
    return factors
