"""The files that lie beside a teacher's weights and go along with its students, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher.own_code import is_own_code

GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
#: Patterns of the files of a tokenizer, with its templates.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
CODE = "*.py"
#: Files that may hold the vocabulary; every kind of tokenizer has at least one.
_VOCABULARIES = (
    "tokenizer.json",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
)


def has_vocabulary(directory: Path) -> bool:
    """Whether the files of a tokenizer lie in a directory."""
    return any(file for pattern in _VOCABULARIES for file in directory.glob(pattern))


def copy_companions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, path: Path
) -> None:
    """Copy a teacher's tokenizer, settings of generation, and code that is in use, to a student's directory.

    Args:
        model: the student.
        tokenizer: the teacher's. Its names of code are dropped unless it may run.
        source: the teacher's directory. Without a tokenizer there, the student's is written anew.
        path: the student's directory, in which its model is saved.
    """
    if has_vocabulary(source):
        for pattern in TOKENIZER_FILES:
            _copy(pattern, source, path)
        _name_no_code(path / TOKENIZER_CONFIG, tokenizer)
    else:
        tokenizer.save_pretrained(path)
    if has_generation_settings(source):
        shutil.copyfile(source / GENERATION, path / GENERATION)
    if _names_code(model, tokenizer):
        _copy(CODE, source, path)


def _copy(pattern: str, source: Path, path: Path) -> None:
    for file in _files(pattern, source):
        target = path / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _files(pattern: str, directory: Path) -> Iterator[Path]:
    """Yield the files of a pattern; code only if it is asked for."""
    for file in sorted(directory.glob(pattern)):
        if file.is_file() and (file.suffix != ".py" or pattern == CODE):
            yield file


def _names_code(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    return is_own_code(type(model)) or bool(tokenizer.init_kwargs.get("auto_map"))


def _name_no_code(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop the names of code that is not in use, and so does not go along, from a tokenizer's config."""
    if not path.is_file() or tokenizer.init_kwargs.get("auto_map"):
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.pop("auto_map", None):
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def has_generation_settings(directory: Path) -> bool:
    """Whether a directory has settings of generation that transformers reads; else the config makes them."""
    try:
        with quiet_libraries():
            GenerationConfig.from_pretrained(directory)
    except (OSError, TypeError, ValueError):
        return False
    return True
