"""The rows of a model that belong to tokens, and a model with the rows of fewer tokens.

Which dimensions these are is found as all others are: the class is built with a few more tokens, and what
grows belongs to them. That nothing else depends on a token's number is tested on a tiny model of the class:
its logits with fewer tokens have to be those of the whole one at these tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from space.axes.axis_map import BUILD_ERRORS, build
from space.axes.config_fields import with_sizes
from space.cutting.extraction import model_from_weights
from space.discovery.tiny import tiny_config
from space.input_error import InputError
from space.verification.contract import random_teacher

_FIELD, _MORE = "vocab_size", 8
#: Suffixes of fields that hold numbers of tokens, alone or in lists.
_SINGLE, _LISTS = ("_token_id", "_token_index"), ("_token_ids", "suppress_tokens")
_TOLERANCE = 1e-5


def vocabulary_dimensions(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the dimensions that have a row for each token, by the names of tensors that have one.

    Raises:
        InputError: no field of the config says how many tokens there are, or something grows otherwise.
    """
    try:
        whole = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
        larger = with_sizes(config, {_FIELD: config.vocab_size + _MORE})
        grown = {name: tensor.shape for name, tensor in build(larger).state_dict().items()}
    except BUILD_ERRORS as error:
        raise _refusal(config, str(error).partition("\n")[0]) from error
    found = {}
    for name, shape in whole.items():
        more = [new - old for new, old in zip(grown[name], shape, strict=True)]
        if set(more) - {0, _MORE}:
            raise _refusal(config, f"{name} grows by {max(more)} rows with {_MORE} tokens")
        if any(more):
            found[name] = tuple(dim for dim, rows in enumerate(more) if rows)
    if not found:
        raise _refusal(config, f"nothing grows with {_FIELD}")
    return found


def named_tokens(config: PretrainedConfig, generation: GenerationConfig | None = None) -> list[int]:
    """Return the tokens that a config, and the settings of generation, name by their numbers."""
    settings = {} if generation is None else generation.to_dict()
    found: set[int] = set()
    for name, value in [*config.to_dict().items(), *settings.items()]:
        if name.endswith((*_SINGLE, *_LISTS)):
            found.update(one for one in (value if isinstance(value, list) else [value]) if type(one) is int)
    return sorted(token for token in found if 0 <= token < config.vocab_size)


def smaller_config(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """Return the config of a model with fewer tokens, which names them by their new numbers.

    Args:
        config: the teacher's.
        kept: (k,) the tokens that stay, ascending.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    return with_sizes(config, _renumbered(config.to_dict(), numbers) | {_FIELD: len(kept)})


def smaller_generation(generation: GenerationConfig, kept: Sequence[int]) -> GenerationConfig:
    """Return the settings of generation with the new numbers of the tokens that they name."""
    numbers = {old: new for new, old in enumerate(kept)}
    fields = generation.to_dict()
    return GenerationConfig.from_dict({**fields, **_renumbered(fields, numbers)})


def _renumbered(fields: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return the fields that name tokens, with the new numbers; tokens that are gone are left out."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name.endswith((*_SINGLE, *_LISTS)) and isinstance(value, list):
            found[name] = [numbers[old] for old in value if old in numbers]
        elif name.endswith(_SINGLE) and type(value) is int:
            found[name] = numbers.get(value)
    return found


@torch.no_grad()
def smaller_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a model with the rows of the tokens that stay; all other tensors are shared with ``model``.

    Args:
        model: the teacher, in evaluation mode.
        kept: (k,) the tokens that stay, ascending.

    Raises:
        InputError: the class does not allow it.
    """
    dimensions, index = vocabulary_dimensions(model.config), torch.tensor(list(kept))
    weights = {
        name: _rows(values, dimensions.get(name, ()), index) for name, values in model.state_dict().items()
    }
    found = model_from_weights(smaller_config(model.config, kept), weights)
    if model.generation_config is not None:
        found.generation_config = smaller_generation(model.generation_config, kept)
    return found


def _rows(values: Tensor, dimensions: Sequence[int], index: Tensor) -> Tensor:
    for dim in dimensions:
        values = values.index_select(dim, index.to(values.device))
    return values


@torch.no_grad()
def check_vocabulary(config: PretrainedConfig, seed: int = 0) -> None:
    """Check on a tiny model of the class that fewer tokens change nothing but how many there are.

    Raises:
        InputError: they do, or the class does not allow it.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        teacher = random_teacher(tiny_config(config), seed)
    except BUILD_ERRORS as error:
        raise _refusal(config, str(error).partition("\n")[0]) from error
    tokens = teacher.config.vocab_size
    drawn = torch.randperm(tokens, generator=generator)[: tokens // 2].tolist()
    kept = sorted({*drawn, *named_tokens(teacher.config)})
    student = smaller_vocabulary(teacher, kept)
    ids = torch.randint(len(kept), (2, 12), generator=generator)
    whole = teacher(torch.tensor(kept)[ids], use_cache=False).logits[..., kept]
    found = student(ids, use_cache=False).logits
    if not torch.allclose(found, whole, rtol=_TOLERANCE, atol=_TOLERANCE * float(whole.abs().max())):
        away = float((found - whole).abs().max())
        raise _refusal(config, f"with fewer tokens the others' logits differ by {away:.1e}")


def _refusal(config: PretrainedConfig, why: str) -> InputError:
    return InputError(
        "The vocabulary of a teacher can be made smaller where its class allows it",
        f"that of type {config.model_type!r} does not: {why}",
        "Keep the whole vocabulary",
    )
