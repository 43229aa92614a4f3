"""Put a student back in the place of its teacher's text half, among the towers that read pictures or sound.

The rest of the model stays byte for byte, but for what writes into the text half: the output of projectors,
which is cut along hidden as the embeddings are. Which tensors do is seen in the shapes that the class of the
whole makes for the teacher and for the student.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher.config_file import CONFIG_FILE, write_fields
from evaluators.teacher.shards import copy_beside_weights, write_shards
from evaluators.teacher.stored import class_names
from evaluators.teacher.text_half import text_names
from evaluators.teacher.weights import TensorFiles, weight_files
from space.input_error import InputError

#: From (…, D) along the teacher's hidden to (…, D') along the student's.
Columns = Callable[[Tensor], Tensor]
_PART = "text_config"
#: Fields of other parts that state the hidden size of the text half, where theirs ends.
_OUTPUTS = ("out_hidden_size", "output_hidden_size", "projection_dim", "text_hidden_size")
#: Fields of a text model's config that the whole states.
_OF_THE_WHOLE = {"architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"}


def whole_config(directory: Path, id: str) -> PretrainedConfig:
    """Return the config of the whole model in a directory.

    Raises:
        InputError: it has no parts beside its text.
    """
    with quiet_libraries():
        config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    if not isinstance(getattr(config, _PART, None), PretrainedConfig):
        raise InputError(
            "--keep-towers is for models of several parts, such as those that read pictures",
            f"{id}, of the type {config.model_type}, has one",
            "Leave the flag out",
        )
    return config


@dataclass(frozen=True)
class Towers:
    """The parts beside a teacher's text half, and how a student takes its place among them.

    Attributes:
        whole: the config of the whole.
        text: the config of the teacher, its text half.
        student: the config of a student.
        id: the teacher's name in messages.
    """

    whole: PretrainedConfig
    text: PretrainedConfig
    student: PretrainedConfig
    id: str

    @cached_property
    def cut(self) -> dict[str, tuple[int, ...]]:
        """The tensors outside the text half that follow hidden, with the dimensions that do.

        They are told by a text half of twice the width: a student of all of hidden has its units in another
        order, or turned.

        Raises:
            InputError: no tensor does, or one in another way, so that the student cannot be put in.
        """
        wide = copy.deepcopy(self.text)
        wide.hidden_size *= 2
        whole, twice, student = (_shapes(self._with(text)) for text in (self.text, wide, self.student))
        found = {}
        for name, shape in whole.items():
            dims = tuple(dim for dim, size in enumerate(shape) if twice[name][dim] != size)
            cut = tuple(self.student.hidden_size if dim in dims else size for dim, size in enumerate(shape))
            if any(shape[dim] != self.text.hidden_size for dim in dims) or student[name] != cut:
                raise self._refusal(f"{name} follows another size of the text half")
            if dims:
                found[name] = dims
        if not found:
            raise self._refusal("none of its tensors outside the text half follows hidden")
        return found

    def check(self) -> None:
        """Check that the student can be put in.

        Raises:
            InputError: see ``cut``.
        """
        _ = self.cut

    def _with(self, text: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(self.whole)
        setattr(config, _PART, copy.deepcopy(text))
        config.tie_word_embeddings = text.tie_word_embeddings
        for part in self.outputs:
            for name in self.outputs[part]:
                setattr(getattr(config, part), name, text.hidden_size)
        return config

    @property
    def outputs(self) -> dict[str, list[str]]:
        """By the names of other parts, their fields that state the hidden size of the text half."""
        parts = [name for name in self.whole.sub_configs if name != _PART]
        return {
            part: [name for name in _OUTPUTS if getattr(config, name, None) == self.text.hidden_size]
            for part in parts
            if (config := getattr(self.whole, part, None)) is not None
        }

    def _refusal(self, why: str) -> InputError:
        return InputError(
            "--keep-towers needs a model whose other parts write into its text half along hidden alone",
            f"of {self.id}, {why}",
            "Leave it out: students are then models of text",
        )


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the whole outside its text half, by name."""
    model = _built(config)
    inside = _text_prefix(model)
    return {name: tuple(one.shape) for name, one in model.state_dict().items() if not name.startswith(inside)}


def _built(config: PretrainedConfig) -> PreTrainedModel:
    """Build the whole without memory for its tensors."""
    named = next(iter(config.architectures or ()), "")
    with quiet_libraries(), torch.device("meta"):
        if hasattr(transformers, named):
            model: PreTrainedModel = getattr(transformers, named)(config)
        else:
            model = AutoModelForImageTextToText.from_config(config)
    return model


def _text_prefix(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the beginnings of the names of the text half in the class of the whole: body and head."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {module: name for name, module in model.named_modules()}
    body = paths[inner].rpartition(".")[0]
    return (f"{body}.", *((f"{paths[head]}.",) if head is not None else ()))


def write_whole(
    source: Path, student: Path, place: Path, towers: Towers, model: PreTrainedModel, columns: Columns
) -> None:
    """Write the whole with a student in the place of the text half; an existing directory is replaced.

    Args:
        source: the teacher's directory, with the whole in it.
        student: the student's directory, as ``write_directory`` wrote it.
        place: where the whole is to lie.
        towers: of this student.
        model: the teacher.
        columns: how the stream is cut, see ``stream_columns``.

    Raises:
        InputError: see ``Towers.cut``.
        OSError: the disk is full.
    """
    new = place.with_name(place.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with ExitStack() as stack:
        stored = TensorFiles(weight_files(source, str(source)), stack)
        own = TensorFiles(weight_files(student, str(student)), stack)
        write_shards(_tensors(stored, own, towers, model, columns), new)
    copy_beside_weights(source, new)
    write_fields(new / CONFIG_FILE, _fields(source, student, towers))
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)


def _tensors(
    stored: TensorFiles, student: TensorFiles, towers: Towers, model: PreTrainedModel, columns: Columns
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the whole by the names that they have in its files."""
    names = text_names(model, stored.shapes)
    beside = [name for name in stored if names.beside(name)]
    places = class_names(_built(towers.whole), beside)
    following = {places[name]: name for name in beside if places[name] in towers.cut}
    cutter = _Cutter(towers.cut, columns, towers.student.hidden_size)
    cutter.prepare({place: stored[name] for place, name in following.items()})
    for name in beside:
        yield name, cutter(places[name], stored[name])
    for name in student:
        yield names.stored(name), student[name]


class _Cutter:
    """Cuts the tensors outside the text half that follow hidden.

    A projector of two layers has its inner neurons as many as hidden. They are no coordinates of the stream:
    of these, the strongest are kept, by the norms of the weights before and behind them.
    """

    def __init__(self, cut: Mapping[str, tuple[int, ...]], columns: Columns, width: int) -> None:
        self._cut, self._columns, self._width = cut, columns, width
        self._inner: dict[str, Tensor] = {}

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Choose the inner neurons of projectors, given the tensors that follow hidden."""
        for second, weight in tensors.items():
            if len(self._cut[second]) < 2:
                continue
            module = second.rpartition(".")[0]
            projector = module.rpartition(".")[0]
            before = [
                name
                for name in tensors
                if name.startswith(f"{projector}.") and name.rpartition(".")[0] != module
            ]
            strength = weight.float().norm(dim=0) * torch.stack(
                [tensors[name].float().flatten(1).norm(dim=1) for name in before if tensors[name].ndim > 1]
            ).prod(0)
            kept = strength.argsort(descending=True)[: self._width].sort().values
            self._inner |= dict.fromkeys([second, *before], kept)

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """Return a tensor as it is, or cut along the dimensions that follow hidden."""
        dims = self._cut.get(name, ())
        inner = self._inner.get(name)
        if inner is not None:
            values = values.index_select(dims[-1], inner)
            dims = dims[:-1]
        for dim in dims:
            cut = self._columns(values.movedim(dim, -1)).to(values.dtype)
            values = cut.movedim(-1, dim)
        return values.contiguous()


def _fields(source: Path, student: Path, towers: Towers) -> dict[str, Any]:
    """Return the content of config.json: the whole's, with the student's text half."""
    whole: dict[str, Any] = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    own = json.loads((student / CONFIG_FILE).read_text(encoding="utf-8"))
    before = whole.get(_PART) or {}
    whole[_PART] = {name: one for name, one in own.items() if name in before or name not in _OF_THE_WHOLE}
    whole["tie_word_embeddings"] = bool(towers.student.tie_word_embeddings)
    for other, names in towers.outputs.items():
        for name in names:
            whole.setdefault(other, {})[name] = towers.student.hidden_size
    return whole
