"""Write a student's config.json in the form of the teacher's, for readers that know only that form.

transformers renames fields between versions (``rope_theta`` and ``rope_scaling`` became ``rope_parameters``,
``torch_dtype`` became ``dtype``), reads the old names, and writes the new ones. Older versions and other
programs read only the old ones, and take a default where a field is missing. So each field that the teacher's
file has stays beside today's, at every depth. No field is listed here: what transformers writes alike for
student and teacher is written as the teacher's file has it.

The version of transformers in it is the teacher's too: by it readers choose how to read a tokenizer's files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from evaluators.huggingface.library_output import quiet_libraries

CONFIG_FILE = "config.json"
Fields = dict[str, Any]
#: Of the machine that a config was written on, not of the model; so are names that begin with an underscore.
_OF_A_MACHINE = ("attn_implementation", "experts_implementation")


def restore_form(path: Path, config: PretrainedConfig, source: Path) -> None:
    """Add the fields to a written config.json that the teacher's has under names of its own.

    Args:
        path: the student's config.json, as transformers wrote it.
        config: the student's.
        source: the teacher's config.json; that of a larger model may hold it as a part.
    """
    written = _read(path)
    stored = _part_of_type(_read(source), written.get("model_type"))
    if stored is None:
        return
    with quiet_libraries():
        teacher = type(config).from_pretrained(source.parent)
        rewritten = json.loads(teacher.to_json_string())
    write_fields(path, _in_form_of(stored, rewritten, teacher, written, config))


def write_fields(path: Path, fields: Fields) -> None:
    """Write a JSON object as transformers does."""
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> Fields:
    fields: Fields = json.loads(path.read_text(encoding="utf-8"))
    return fields


def _part_of_type(stored: Fields, model_type: str | None) -> Fields | None:
    """Return the config of a type: the whole file, or the part of it that is of this type."""
    if stored.get("model_type") == model_type:
        return stored
    parts = [one for one in stored.values() if isinstance(one, dict) and one.get("model_type") == model_type]
    return parts[0] if len(parts) == 1 else None


def _in_form_of(stored: Fields, teacher: Fields, teacher_object: Any, student: Fields, config: Any) -> Fields:
    """Return a student's fields in the form of a teacher's.

    Args:
        stored: the teacher's fields as its file has them.
        teacher: the same as transformers would write them.
        teacher_object: the object with the teacher's attributes, under old names and new ones.
        student: the student's fields as transformers wrote them.
        config: the object with the student's attributes.
    """
    found = dict(student)
    for name, before in stored.items():
        if name in student and name in teacher:
            parts = _attribute(teacher_object, name), _attribute(config, name)
            found[name] = _value(before, teacher[name], student[name], *parts)
        elif name == "torch_dtype" and "dtype" in student:
            found[name] = student["dtype"]
        elif name not in student and name not in teacher and _is_of_the_model(name):
            then, now = _attribute(teacher_object, name), _attribute(config, name)
            found[name] = before if then == now else now
    return found


def _attribute(config: Any, name: str) -> Any:
    """Return an attribute under an old name or today's, also one whose layers have values of their own."""
    own = getattr(config, "__dict__", {})
    return own[name] if name in own else getattr(config, name, None)


def _value(before: Any, teacher: Any, student: Any, teacher_object: Any, config: Any) -> Any:
    """Return a student's value of one field in the form of the teacher's, see ``_in_form_of``."""
    if student == teacher:
        return before
    values = before, teacher, student
    if all(isinstance(value, dict) for value in values):
        return _in_form_of(before, teacher, teacher_object, student, config)
    if all(isinstance(value, list) for value in values) and len(before) == len(teacher):
        return _renamed_back(before, teacher, student)
    return student


def _renamed_back(before: list[Any], teacher: list[Any], student: list[Any]) -> list[Any]:
    """Return a student's entries by the names that the teacher's file has for them, if that is one each."""
    pairs = {(new, old) for new, old in zip(teacher, before, strict=True) if isinstance(new, str)}
    old_names = dict(pairs)
    unique = len(old_names) == len(pairs) and set(student) <= set(old_names)
    return [old_names[entry] for entry in student] if unique else student


def _is_of_the_model(name: str) -> bool:
    return not name.startswith("_") and name not in _OF_A_MACHINE
