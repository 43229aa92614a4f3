"""Shared weights: the sorted teacher as parameters, and every student as a slice of them.

All students of a search are prefixes of one sorted teacher. Trained as slices of it, they train one another:
what one architecture learns is in the weights of the others (weight sharing as in once-for-all networks,
arXiv 1908.09791). A student here is a stock Hugging Face model whose parameters are views of the shared ones,
made by the same function as an extracted student (``student_weights``), so the two never differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import (
    extract,
    layers_kept,
    model_from_weights,
    student_config,
    student_weights,
)
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair

_NOTHING = Repair()


class SharedWeights(nn.Module):
    """The parameters of all students of a teacher.

    Args:
        canonical: from ``sort_by_importance``; copied, in the dtype of training.
        axis_map: the teacher's.
        ranking: the ranking that ``canonical`` was sorted by.
        repair: how the slices are repaired for what is cut; nothing by default.
        dtype: of the parameters.
    """

    def __init__(
        self,
        canonical: Mapping[str, Tensor],
        axis_map: AxisMap,
        ranking: Ranking,
        repair: Repair = _NOTHING,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.axis_map, self.ranking, self.repair = axis_map, ranking, repair
        for tensor in axis_map.tensors:
            values = canonical[tensor.name].detach()
            if tensor.name in axis_map.buffers:
                self.register_buffer(_attribute(tensor.name), values.clone())
            else:
                self.register_parameter(_attribute(tensor.name), nn.Parameter(values.to(dtype, copy=True)))
        self._students: dict[Architecture, PreTrainedModel] = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the shared tensors by the teacher's names, as ``sort_by_importance`` returns them."""
        own: dict[str, Tensor] = {**self._parameters, **self._buffers}  # type: ignore[dict-item]
        return {tensor.name: own[_attribute(tensor.name)] for tensor in self.axis_map.tensors}

    def kept_layers(self, architecture: Architecture) -> list[int]:
        """Return the indices of the teacher's layers that a student keeps, ascending."""
        return layers_kept(self.axis_map, self.ranking, architecture)

    def slices(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the weights of a student by its own names; their gradients flow to the shared ones."""
        kept = self.kept_layers(architecture)
        return student_weights(self.tensors(), self.axis_map, self.ranking, architecture, kept, self.repair)

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """Return a student with its own memory, as ``space.cutting.extraction.extract`` does."""
        return extract(self.tensors(), self.axis_map, self.ranking, architecture, repair=self.repair)

    def skeleton(self, architecture: Architecture) -> PreTrainedModel:
        """Return the model of a student, to run within ``as_student``; made once for each architecture."""
        if architecture not in self._students:
            kept = self.kept_layers(architecture)
            with torch.no_grad():
                weights = self.slices(architecture)
            model = model_from_weights(student_config(self.axis_map, architecture, kept), weights)
            self._students[architecture] = model
        return self._students[architecture]

    def forget(self) -> None:
        """Drop all skeletons, whose memory is not that of the parameters once these were replaced."""
        self._students.clear()

    @contextmanager
    def as_student(self, architecture: Architecture) -> Iterator[PreTrainedModel]:
        """Within the context, the skeleton of a student has the slices for parameters."""
        model = self.skeleton(architecture)
        # Kernels for stacked experts want whole rows in a row; those for matrices take any stride.
        slices = {
            name: values.contiguous() if values.ndim > 2 else values
            for name, values in self.slices(architecture).items()
        }
        before = []
        for module in model.modules():
            before += [(module, name, one) for name, one in module._parameters.items() if one is not None]
        names = {id(one): name for name, one in model.named_parameters()}
        try:
            for module, name, parameter in before:
                module._parameters[name] = slices[names[id(parameter)]]  # type: ignore[assignment]
            yield model
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter


def _attribute(name: str) -> str:
    """Return the name under which a module may have a parameter."""
    return name.replace(".", "/")
