"""Classes that come with a teacher as Python files, named by ``auto_map`` in its config.

They run only if the user allows it, and only for types that transformers does not have. They are registered,
so that the rest of the program builds, cuts and reads such a model as any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from space.input_error import InputError

#: The package in which transformers puts the files of such code.
_PACKAGE = "transformers_modules"
_CLASSES = ("AutoConfig", "AutoModelForCausalLM")


def is_of_transformers(model_type: Any) -> bool:
    """Whether transformers, or a program that registered its own, has classes for a type."""
    return model_type in CONFIG_MAPPING and not is_own_code(CONFIG_MAPPING[model_type])


def is_own_code(kind: type) -> bool:
    """Whether a class comes from the files of a model."""
    return kind.__module__.partition(".")[0] == _PACKAGE


def check_code(described: dict[str, Any], id: str, trust_remote_code: bool) -> bool:
    """Return whether the code that comes with a teacher is to be used.

    Args:
        described: its config.json.
        id: its name in messages.
        trust_remote_code: whether such code may run.

    Raises:
        InputError: it would have to run and may not, it lacks a class, or there is none.
    """
    kind, names = described.get("model_type"), described.get("auto_map")
    if is_of_transformers(kind):
        return False
    if not names:
        raise InputError(
            "the teacher's type has to be known to transformers",
            f"{id} has the model_type {kind}",
            "Install a newer transformers, or name another model",
        )
    if not trust_remote_code:
        raise InputError(
            "code that comes with a model runs only if you allow it",
            f"{id} is of the type {kind}, which transformers does not have; its own code would have to run",
            "Read that code, then give --trust-remote-code",
        )
    missing = [name for name in _CLASSES if not isinstance(names, dict) or name not in names]
    if missing:
        raise InputError(
            f"code that comes with a teacher has to have classes for {' and '.join(_CLASSES)}",
            f"auto_map of {id} names none for {' and '.join(missing)}",
            "Name another model",
        )
    return True


def registered_config(directory: Path, described: dict[str, Any]) -> PretrainedConfig:
    """Read the config of a teacher by its own code, and register its classes with transformers.

    Classes that another directory registered for the type before give way.

    Raises:
        Exception: whatever that code does wrong.
    """
    names = described["auto_map"]
    of_config, of_model = (_class_in(directory, names[name]) for name in _CLASSES)
    AutoConfig.register(described["model_type"], of_config, exist_ok=True)
    AutoModelForCausalLM.register(of_config, add_generation_mixin_to_remote_model(of_model), exist_ok=True)
    config: PretrainedConfig = of_config.from_pretrained(directory)
    return config


def _class_in(directory: Path, name: str) -> Any:
    """Return the class ``module.Class`` of a directory, or ``repository--module.Class`` of the hub."""
    return get_class_from_dynamic_module(name, directory)
