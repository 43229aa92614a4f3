"""A teacher's config, and the refusal of what is no causal language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from evaluators.huggingface.one_line import one_line
from evaluators.huggingface.quiet import quiet
from evaluators.teacher.files import find_config
from space.input_error import InputError

_CAUSAL = "a teacher is a causal language model"


def load_config(id: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a teacher; a directory with config.json alone will do.

    Args:
        id: a directory or a hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        InputError: there is no such model, or it is none that can be a teacher.
    """
    return read_config(find_config(id, revision, trust_remote_code), id, trust_remote_code)


def read_config(directory: Path, id: str, trust_remote_code: bool) -> PretrainedConfig:
    """The config in a directory, checked.

    Raises:
        InputError: as for ``load_config``.
    """
    described = _described(directory / "config.json", id)
    _refuse_remote_code(described, id, trust_remote_code)
    _refuse_quantised(described, id)
    with quiet():
        config = _config(directory, id, trust_remote_code)
    _refuse_not_causal(config, described, id, trust_remote_code)
    return config


def _config(directory: Path, id: str, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever is wrong with a file that the user brought
        raise InputError(
            "config.json has to be one that transformers reads",
            f"of that of {id} it says: {one_line(error)}",
            "Mend it, or install the transformers that wrote it",
        ) from error
    return config


def _described(path: Path, id: str) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "config.json has to be JSON", f"that of {id} is not: {one_line(error)}", "Get the file again"
        ) from error
    if not isinstance(described, dict):
        raise InputError("config.json has to be a JSON object", f"that of {id} is not", "Get the file again")
    return described


def _refuse_quantised(described: dict[str, Any], id: str) -> None:
    how = described.get("quantization_config") or described.get("compression_config")
    if how:
        method = f" ({how['quant_method']})" if isinstance(how, dict) and "quant_method" in how else ""
        raise InputError(
            "a teacher's weights are stored in floating point",
            f"{id} is quantised{method}",
            "Name the model it was made from",
        )


def _refuse_remote_code(described: dict[str, Any], id: str, trust_remote_code: bool) -> None:
    kind = described.get("model_type")
    if kind in CONFIG_MAPPING or (described.get("auto_map") and trust_remote_code):
        return
    if described.get("auto_map"):
        raise InputError(
            "code that comes with a model runs only if you allow it",
            f"{id} is of the type {kind}, which transformers does not have; its own code would have to run",
            "Read that code, then give --trust-remote-code",
        )
    raise InputError(
        "the teacher's type has to be known to transformers",
        f"{id} has the model_type {kind}",
        "Install a newer transformers, or name another model",
    )


def _refuse_not_causal(
    config: PretrainedConfig, described: dict[str, Any], id: str, trust_remote_code: bool
) -> None:
    remedy = "Name a decoder-only model with a language modelling head, such as a Llama, Mistral or Qwen"
    if config.is_encoder_decoder:
        raise InputError(_CAUSAL, f"{id} ({config.model_type}) has an encoder and a decoder", remedy)
    if trust_remote_code and "AutoModelForCausalLM" in (described.get("auto_map") or {}):
        return
    if not _has_causal_head(config):
        named = ", ".join(config.architectures or ())
        found = f"a {named}" if named else f"of the type {config.model_type}"
        raise InputError(_CAUSAL, f"{id} is {found}", remedy)


def _has_causal_head(config: PretrainedConfig) -> bool:
    kind, architectures = config.model_type, config.architectures or []
    # Types such as BERT serve as encoders unless the config says otherwise.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return False
    if architectures and set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).isdisjoint(architectures):
        return False
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
