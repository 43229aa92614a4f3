"""How the stream varies at each norm, and how the loss answers there: bases are made of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.importance.moment_sum import MomentSum
from evaluators.importance.moments import Covariance
from space.axes.axis_map import AxisMap, MappedTensor, wildcard_name
from space.cutting.basis import Basis, BasisName, basis_of, fold_norms, hidden_dimension
from space.cutting.extraction import model_from_weights, saved_tensors, student_config

GRADIENT, ALIKE = "gradient", "gradient, norms alike"
_BLOCKS_AT_ONCE = 8


@torch.no_grad()
def folded_teacher(model: PreTrainedModel, axis_map: AxisMap) -> PreTrainedModel:
    """A copy of the teacher whose norms have no weights of their own; its head is apart if the map's is."""
    assert axis_map.stream is not None, "only a stream that can be turned is folded"
    weights = fold_norms(saved_tensors(model, axis_map), axis_map, axis_map.stream)
    layers = list(range(axis_map.teacher.layers))
    config = student_config(axis_map, axis_map.teacher, layers)
    return model_from_weights(config, {name: values.detach().clone() for name, values in weights.items()})


def norms_of(axis_map: AxisMap) -> list[MappedTensor]:
    """The weights of the stream's norms, first to last."""
    assert axis_map.stream is not None
    return [tensor for tensor in axis_map.tensors if wildcard_name(tensor.name) in axis_map.stream.readers]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the folded teacher, by the name of a norm's weight."""

    axis_map: AxisMap
    covariances: Mapping[str, Tensor]
    """(D, D) float64, the mean of x̂x̂ᵀ."""
    gradients: Mapping[str, Tensor]
    """(D, D) float64, the mean of ggᵀ, with g the loss's gradient at x̂."""
    products: Mapping[str, Sequence[Tensor]]
    """(D, D) float64 WᵀW of each matrix that reads the norm."""

    def covariance(self, norms: Sequence[str]) -> Tensor:
        """(D, D) the mean over these norms."""
        return torch.stack([self.covariances[name] for name in norms]).mean(0)

    def reading(self, norms: Sequence[str]) -> Tensor:
        """(D, D) as ``moments.reader_weighting``, of the readers of these norms alone."""
        covariance = self.covariance(norms)
        products = [product for name in norms for product in self.products[name]]
        return torch.stack([product / (product * covariance).sum() for product in products]).sum(0)

    def gradient(self, norms: Sequence[str], alike: bool = False) -> Tensor:
        """(D, D) the sum over these norms; ``alike`` gives each of them the same weight tr(G C)."""
        parts = [
            self.gradients[name] / ((self.gradients[name] * self.covariances[name]).sum() if alike else 1)
            for name in norms
        ]
        return torch.stack(parts).sum(0)

    def basis(self, name: str, norms: Sequence[str]) -> Basis:
        """Of what these norms see: principal, weighted by their readers, or by the loss's gradient."""
        covariance = self.covariance(norms)
        if name in (GRADIENT, ALIKE):
            return basis_of(BasisName.WEIGHTED, covariance, self.gradient(norms, name == ALIKE))
        return basis_of(BasisName(name), covariance, self.reading(norms))


def statistics_of(teacher: PreTrainedModel, axis_map: AxisMap, calibration: Tensor) -> Statistics:
    """One pass forward and backward over the calibration set.

    The labels are drawn from the teacher's own distribution, so that the mean of ggᵀ is the Fisher
    information of the normalised stream.

    Args:
        teacher: from ``folded_teacher``.
        axis_map: of the teacher.
        calibration: (N, T) token numbers.
    """
    norms = norms_of(axis_map)
    covariances = {norm.name: Covariance() for norm in norms}
    gradients = {norm.name: MomentSum() for norm in norms}
    seen: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    hooks = [_keep(teacher.get_submodule(norm.module), norm.name, seen) for norm in norms]
    teacher.requires_grad_(False)
    teacher.get_input_embeddings().requires_grad_(True)
    for batch in calibration.long().split(_BLOCKS_AT_ONCE):
        logits = teacher(input_ids=batch, use_cache=False).logits.flatten(0, 1)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        for (name, states), gradient in zip(
            seen.items(), torch.autograd.grad(loss, list(seen.values())), strict=True
        ):
            rows = gradient.flatten(0, -2)
            covariances[name].add(states)
            gradients[name].add(rows.T @ rows, len(rows))
    for hook in hooks:
        hook.remove()
    teacher.requires_grad_(False)
    return Statistics(
        axis_map,
        {name: covariance.mean for name, covariance in covariances.items()},
        {name: sums.mean for name, sums in gradients.items()},
        {norm.name: _products(teacher, axis_map, norm) for norm in norms},
    )


def _keep(module: nn.Module, name: str, seen: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    def keep(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = output

    return module.register_forward_hook(keep)


def _products(teacher: PreTrainedModel, axis_map: AxisMap, norm: MappedTensor) -> list[Tensor]:
    assert axis_map.stream is not None
    names = axis_map.stream.readers[wildcard_name(norm.name)]
    found = []
    for tensor in axis_map.tensors:
        if wildcard_name(tensor.name) in names and norm.layer in (None, tensor.layer):
            weight = teacher.get_parameter(tensor.name).detach()
            rows = weight.movedim(hidden_dimension(tensor.axes), -1).flatten(0, -2)
            found.append((rows.T @ rows).double())
    return found
