"""What a config promises and this machine or the class does not keep: taken back, each with a line.

A config goes along with the students, so what it says has to be true of them: no layers that the class does
not have, no code that does not lie beside it. How attention is computed is no property of a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig

from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher.said import first_names, say_once
from space.axes.axis_map import BUILD_ERRORS, build

#: Ways to compute attention and experts that need no other package than PyTorch.
_PYTORCHS_OWN = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_HOW = ("_attn_implementation", "_experts_implementation")
#: Fields that count or switch on layers for predicting tokens ahead.
_AHEAD = re.compile(r"(^|_)(mtp|nextn)(_|$)")
_COUNT = re.compile(r"(^|_)(num|n|layers|modules|depths?)(_|$)")


def keep_promises(config: PretrainedConfig, id: str, own_code: bool) -> None:
    """Take back, in place, what the config of a teacher promises in vain.

    Args:
        config: of the teacher, as it was read.
        id: the teacher's name in messages.
        own_code: whether code that comes with the model is in use, and goes along with students.
    """
    _compute_with_pytorch(config, id)
    if own_code:
        return  # what the class builds, its own code says
    for one in _with_parts(config):
        if code := vars(one).pop("auto_map", None):
            say_without_code(id, code)
    _without_layers_ahead(config, id)


def say_without_code(id: str, code: object) -> None:
    """Tell that classes of transformers take the place of the code that a teacher's ``auto_map`` names."""
    named = first_names(sorted(map(str, code))) if isinstance(code, Mapping) else repr(code)
    say_once(
        f"{id} names code of its own for {named}; transformers' own classes take its "
        "place, and students do not name it"
    )


def _with_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield a config and those nested in it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from _with_parts(value)


def _compute_with_pytorch(config: PretrainedConfig, id: str) -> None:
    """Forget implementations of other packages, which this machine may lack, or which need half precision."""
    for one in _with_parts(config):
        for how in _HOW:
            asked = getattr(one, how, None)
            if asked not in _PYTORCHS_OWN:
                say_once(f"{id} asks for {asked} in its config; it is computed by PyTorch's own means here")
                setattr(one, f"{how}_internal", None)


def _without_layers_ahead(config: PretrainedConfig, id: str) -> None:
    """Set fields that promise layers for predicting tokens ahead to none, unless the class makes them."""
    promised = [
        (one, name, value)
        for one in _with_parts(config)
        for name, value in vars(one).items()
        if _promises(name, value)
    ]
    if not promised:
        return
    before = _shapes(config)
    for one, name, value in promised:
        setattr(one, name, type(value)(0))
        if before is None or _shapes(config) != before:
            setattr(one, name, value)
        else:
            say_once(
                f"{id} promises {name} = {value}; its class in transformers makes no such layers, "
                f"so the configs of students say {type(value)(0)}"
            )


def _promises(name: str, value: object) -> bool:
    if not _AHEAD.search(name):
        return False
    if isinstance(value, bool):
        return value
    return isinstance(value, int) and value > 0 and bool(_COUNT.search(name))


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor that the class makes; None if it does not build the model."""
    try:
        with quiet_libraries():
            return {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    except BUILD_ERRORS:
        return None
