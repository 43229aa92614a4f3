"""A teacher whose weights stay on disk: its parts are loaded when they are needed, and dropped afterwards.

Names and tensors on disk can differ from those of the class (experts stored one by one, a prefix left out).
So the weights are loaded by the code with which transformers loads whole models, a few names at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig

from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher.config import read_config
from evaluators.teacher.stored import find_places, weight_mapping
from evaluators.teacher.weights import weight_files
from space.axes.axis_map import AxisMap, layer_modules
from space.input_error import InputError


class TeacherOnDisk:
    """A teacher on the meta device, and the files from which its weights can be loaded.

    Attributes:
        model: the model in evaluation mode; its parameters take no memory until they are fetched.
        device: the device of fetched parameters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slices: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        id: str,
    ) -> None:
        self.model, self.device = model, device
        self._slices, self._id = slices, id
        tensors = find_places(model, {name: one.get_shape() for name, one in slices.items()})
        self._load_config = LoadStateDictConfig(
            device_map={"": device},
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            weight_mapping=weight_mapping(model, tensors.key_mapping),
        )
        if tensors.unknown:
            raise _misfit(id, f"{tensors.unknown[0]} has no place in the model")
        self._model_names = tensors.places

    def fetch(self, belongs: Callable[[str], bool]) -> None:
        """Load the parameters and saved buffers whose names ``belongs`` accepts, and tie tied weights.

        Raises:
            InputError: such a parameter is not among the stored weights, or has another shape.
        """
        chosen = {name: self._slices[name] for name, place in self._model_names.items() if belongs(place)}
        with quiet_libraries():
            info, _ = convert_and_load_state_dict_in_model(self.model, chosen, self._load_config)
            self.model.tie_weights()
        self.model.requires_grad_(False)
        for name, stored, built in sorted(info.mismatched_keys):
            raise _misfit(self._id, f"{name} is {tuple(stored)} stored, {tuple(built)} by the config")
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.is_meta and belongs(name):
                raise _misfit(self._id, f"{name} is not stored, or shared between layers")

    @staticmethod
    def drop(module: nn.Module) -> None:
        """Free the memory of all parameters of a module."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


@contextmanager
def teacher_on_disk(
    directory: Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False
) -> Iterator[TeacherOnDisk]:
    """Within the context a teacher's files are open; none of its parameters is loaded yet.

    Args:
        directory: holds config.json, and weights in one safetensors file or in shards with an index.
        device: the device of fetched parameters.
        dtype: the dtype of fetched parameters.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        InputError: there is no teacher, or its weights and config do not match.
    """
    id = str(directory)
    config = read_config(directory, id, trust_remote_code)
    files = weight_files(directory, id)
    with quiet_libraries(), init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    model.eval()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(device)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        slices = {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118
        yield TeacherOnDisk(model, slices, device, dtype, id)


class WeightsOnDisk(Mapping[str, Tensor]):
    """The tensors of a teacher's map by name, read when they are asked for; at most one layer is in memory.

    Args:
        teacher: whose files are open; nothing has been fetched yet, or only what lies outside the layers.
        axis_map: the teacher's.
    """

    def __init__(self, teacher: TeacherOnDisk, axis_map: AxisMap) -> None:
        self.teacher = teacher
        self._layers = list(layer_modules(teacher.model, axis_map))
        self._layer_of = {tensor.name: tensor.layer for tensor in axis_map.tensors}
        self._stack, self._here = axis_map.stacks[0], -1
        teacher.fetch(lambda name: not name.startswith(self._stack))

    def __getitem__(self, name: str) -> Tensor:
        layer = self._layer_of[name]
        if layer is not None and layer != self._here:
            if self._here >= 0:
                self.teacher.drop(self._layers[self._here])
            self.teacher.fetch(lambda one: one.startswith(f"{self._stack}{layer}."))
            self._here = layer
        model = self.teacher.model
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        return tensors[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layer_of)

    def __len__(self) -> int:
        return len(self._layer_of)


def _misfit(id: str, what: str) -> InputError:
    return InputError(
        "config and weights of a teacher have to fit each other to be read layer by layer",
        f"of {id}'s tensors {what}",
        "Check that config.json belongs to the weights, or take a device on which the whole teacher fits",
    )
