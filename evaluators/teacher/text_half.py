"""The text half of a model of several parts, such as one that reads pictures: its config and its tensors.

Such a model is a decoder with towers and projectors beside it. transformers has most decoders as causal
language models of their own, to which the config of the text half belongs. In the files of the whole, their
tensors lie under a longer name: ``language_model.model.layers.0`` or ``model.language_model.layers.0``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evaluators.teacher.said import say_once
from space.input_error import InputError

Shapes = Mapping[str, Sequence[int]]

#: Classes of the whole whose head predicts the next token.
_GENERATES = ("ForConditionalGeneration", "ForCausalLM")
#: What a part of a model reads or makes, by the beginning of its config's name.
_SENSES = {"vision": "pictures", "image": "pictures", "video": "videos", "audio": "sound", "speech": "sound"}
#: Fields that config.json of the whole may state for its text half.
_OF_THE_TEXT = ("bos_token_id", "eos_token_id")


def text_half(config: PretrainedConfig, described: Mapping[str, Any], id: str) -> PretrainedConfig:
    """Return the config of the text half of a model of several parts, and say so; any other config as it is.

    Args:
        config: of the whole.
        described: what its config.json states.
        id: the teacher's name in messages.

    Raises:
        InputError: transformers has no causal language model for the text half.
    """
    text = getattr(config, "text_config", None)
    if not isinstance(text, PretrainedConfig) or not text.model_type or config.is_encoder_decoder:
        return config
    named = config.architectures or []
    if named and not any(name.endswith(_GENERATES) for name in named):
        return config  # such as one that classifies pictures: refused with other models without a head
    kind = text.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            "of a model of several parts, the text half has to be a causal language model in transformers",
            f"{id} is of the type {config.model_type}, and its text half of the type {kind}, which is none",
            "Name a decoder-only model, such as one of the same family that reads text alone",
        )
    _take_over(text, described)
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    text.dtype = text.dtype or config.dtype
    say_once(
        f"{id} is of the type {config.model_type}, of several parts: its text half, of the type {kind}, "
        f"is the teacher by itself; {_senses(config)} left behind, and students are models of text"
    )
    return text


def _take_over(text: PretrainedConfig, described: Mapping[str, Any]) -> None:
    """Set what the whole states for its text half.

    Whether the head is tied, transformers 5 asks of the whole, and writes it there; transformers 4 asked it
    of the text half. So what is stated for the whole comes first, then the text half with its default.
    """
    inner = described.get("text_config")
    stated = inner if isinstance(inner, dict) else {}
    for name in _OF_THE_TEXT:
        if described.get(name) is not None and name not in stated:
            setattr(text, name, described[name])
    if isinstance(described.get("tie_word_embeddings"), bool):
        text.tie_word_embeddings = described["tie_word_embeddings"]


def _senses(config: PretrainedConfig) -> str:
    """Return what the other parts of a model are for, as the subject of a sentence with its verb."""
    parts = [name for name in config.sub_configs if getattr(config, name, None) is not None]
    found = [word for prefix, word in _SENSES.items() if any(part.startswith(prefix) for part in parts)]
    return f"{' and '.join(dict.fromkeys(found)) or 'the other parts'} are"


@dataclass(frozen=True)
class TextNames:
    """How the tensors of a text half are named in the files of the whole.

    Attributes:
        prefixes: the beginnings of stored names, with what stands there in the class. Empty if the names are
            those of the class.
    """

    prefixes: dict[str, str]

    @property
    def key_mapping(self) -> dict[str, str]:
        """The same in the form that ``from_pretrained`` takes, with regular expressions for stored names."""
        return {f"^{re.escape(prefix)}": built for prefix, built in self.prefixes.items()}

    def beside(self, name: str) -> bool:
        """Whether a stored tensor lies outside the text half."""
        return bool(self.prefixes) and not name.startswith(tuple(self.prefixes))

    def stored(self, name: str) -> str:
        """Return the name that a tensor of the class has in the files of the whole."""
        longest = sorted(self.prefixes.items(), key=lambda pair: -len(pair[1]))
        for prefix, built in longest:
            if name.startswith(built):
                return prefix + name.removeprefix(built)
        return name


def text_names(model: PreTrainedModel, shapes: Shapes) -> TextNames:
    """Find where the text half lies in some files: where the table of its embeddings is.

    Args:
        model: the text half, which may lie on the meta device.
        shapes: the shape of every stored tensor, by name.
    """
    table = _path(model, model.get_input_embeddings())
    stored = _stored(table, model, shapes)
    if stored is None or stored == table:
        return TextNames({})
    found = {_parent(stored): _parent(table)}
    head = _path(model, model.get_output_embeddings())
    if head and (stored := _stored(head, model, shapes)):
        found[f"{stored}."] = f"{head}."
    return TextNames(found)


def _path(model: nn.Module, part: nn.Module | None) -> str:
    return next((name for name, module in model.named_modules() if module is part), "")


def _parent(path: str) -> str:
    """Return the path of the module that holds another, with a dot behind it if it is not the model."""
    return path.removesuffix(path.rpartition(".")[2])


def _stored(path: str, model: nn.Module, shapes: Shapes) -> str | None:
    """Return the path that a module with a weight has in some files; None if there is not one alone."""
    weight, last = f"{path}.weight", f".{path.rpartition('.')[2]}.weight"
    if weight in shapes:
        return path
    found = [name for name in shapes if name.endswith(last)]
    if len(found) > 1:
        built = list(model.get_parameter(weight).shape)
        found = [name for name in found if list(shapes[name]) == built]
    return found[0].removesuffix(".weight") if len(found) == 1 else None
