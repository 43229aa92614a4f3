"""Scores of layers by the methods that the ranking's own forward pass does not give."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.blocks import fingerprint
from evaluators.importance.layer_cost import forward_passes
from evaluators.importance.layer_passes import (
    DepthSetting,
    PartialPasses,
    depends_on_states_alone,
    skipping_layers,
)
from evaluators.importance.layer_removal import (
    BoundaryCosines,
    Cost,
    Costs,
    block_influence,
    by_divergence,
    by_loss,
    influence_without,
    removal_order,
    removal_ranks,
    without_blocks,
    without_each,
)
from evaluators.importance.method import Depth, Method
from evaluators.importance.precision import products
from space.axes.architecture import Axis
from space.axes.axis_map import layer_modules
from space.cutting.ranking import Ranking
from space.input_error import InputError

#: A task whose answers are generated: maps a model to its score, higher is better.
TaskScorer = Callable[[PreTrainedModel], float]


@runtime_checkable
class TaskCosts(Protocol):
    """Costs on the examples of a task, which are choices between texts, instead of the calibration text."""

    @property
    def batches(self) -> Sequence[Tensor]:
        """The examples, each batch (B, T) token ids."""

    def __call__(self, passes: PartialPasses) -> Cost:
        """Return the cost function of a batch, higher is worse."""


Judge = TaskScorer | TaskCosts
#: Methods that score each layer by itself, and so also with other layers already removed.
_SINGLE_LAYER_METHODS = (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE, Depth.BENCHMARK)
_COSTS: Mapping[Depth, Costs] = {
    Depth.PERPLEXITY: by_loss,
    Depth.BLOCK_PERPLEXITY: by_loss,
    Depth.DIVERGENCE: by_divergence,
}


@dataclass(frozen=True, eq=False)
class LayerScores:
    """The importance of layers and blocks of layers, higher is more important; the same in every basis."""

    layers: Tensor
    """(L,) scores of single layers."""
    blocks: Tensor | None = None
    """(L, L) scores of blocks, as in ``Ranking``."""

    def given_to(self, ranking: Ranking) -> Ranking:
        """Return the ranking with these scores of its layers."""
        return replace(ranking, scores={**ranking.scores, Axis.LAYERS: self.layers}, blocks=self.blocks)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the file atomically, with the ``layers_fingerprint`` of what the scores depend on."""
        tensors = {"layers": self.layers.contiguous()}
        if self.blocks is not None:
            tensors["blocks"] = self.blocks.contiguous()
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"fingerprint": fingerprint})
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> LayerScores | None:
        """Load scores; None if the file is missing, damaged or has another fingerprint."""
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("fingerprint") != fingerprint:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        return cls(**tensors)


#: Tokens on which layers are scored by passes of their own, in whole blocks spread over the calibration set.
#: studies/ranking_samples: orders of small teachers are settled by 8,192; that of 30 layers comes nearer with
#: the root of the tokens, from τ 0.79 at 256.
LAYER_TOKENS = 32_768


def sample_blocks(blocks: int, block: int, tokens: int | None = None) -> int:
    """Return how many of the calibration blocks, of ``block`` tokens, have so many tokens."""
    return min(blocks, -(-(tokens or LAYER_TOKENS) // block))


def layer_sample(calibration: Tensor, tokens: int | None = None) -> Tensor:
    """Return (n, T) of (N, T) blocks, spread evenly: those on which layers are scored by their own passes."""
    blocks, block = calibration.shape
    number = sample_blocks(blocks, block, tokens)
    return calibration[torch.arange(number) * blocks // max(1, number)]


def layers_fingerprint(teacher: str, calibration: Tensor, method: Method) -> str:
    """Return a hash of all that scores of layers depend on: teacher's fingerprint, sample, and method."""
    precision = "bfloat16" if method.bfloat16 else "float32"
    return fingerprint(teacher, layer_sample(calibration), method.depth_words, precision)


def check_depth(method: Method, judge: Judge | None, calibration: Tensor) -> None:
    """Check before any work that layers can be scored by this method.

    Raises:
        InputError: the parts of the method do not fit together, or the blocks are too short for it.
    """
    if method.greedy and method.depth not in _SINGLE_LAYER_METHODS:
        raise InputError(
            "Layers are taken out greedily by what each of them does",
            f"the depth method is {method.depth.value!r}",
            "Choose influence, perplexity, divergence or a task, or leave greedy out",
        )
    if method.by_task and judge is None:
        raise InputError(
            "Layers scored by a benchmark need one that is named", "none is", "Name a task of the benchmark"
        )
    if method.by_task and not isinstance(judge, TaskCosts) and (method.greedy or method.in_blocks):
        raise InputError(
            "Rows of layers, and greedy removals, are scored by a task that is a choice between texts",
            f"the answers of {method.benchmark} are generated",
            "Score single layers by it (--depth-by TASK), or name another task",
        )
    if method.depth in (Depth.PERPLEXITY, Depth.BLOCK_PERPLEXITY) and calibration.shape[1] < 2:
        raise InputError(
            "Layers scored by loss need calibration blocks of two tokens or more",
            f"the blocks have {calibration.shape[1]}",
            "Take longer blocks, or choose influence",
        )


@torch.no_grad()
def layer_scores(setting: DepthSetting, method: Method, judge: Judge | None = None) -> LayerScores:
    """Score layers by any method that the ranking pass itself does not give.

    Args:
        setting: teacher, and text such as ``layer_sample``.
        method: checked by ``check_depth``.
        judge: the task, if the method is by one.

    Raises:
        InputError: a loss, divergence or score without a layer is not finite.
    """
    if method.depth is Depth.RANDOM:
        generator = torch.Generator().manual_seed(method.seed)
        return LayerScores(torch.rand(setting.layers, generator=generator))
    costs = _COSTS.get(method.depth)
    if isinstance(judge, TaskCosts):
        costs, setting = judge, _on_task(setting, judge)
    if costs is not None and setting.batches:
        reuse = depends_on_states_alone(setting.model, setting.axis_map, setting.batches[0])
        setting = replace(setting, reuse=reuse)
    with products(setting.model, method.bfloat16):
        if costs is None and method.depth is Depth.BENCHMARK:
            assert judge is not None, "the method was checked"
            return LayerScores(_by_generation(setting, method, cast(TaskScorer, judge)))
        return _by_passes(setting, method, costs)


def _on_task(setting: DepthSetting, judge: TaskCosts) -> DepthSetting:
    """Return the setting with the examples as its text; it goes on telling of blocks of the sample."""
    ours, theirs = sum(map(len, setting.batches)), sum(map(len, judge.batches))
    return replace(
        setting, batches=judge.batches, advance=lambda rows: setting.advance(rows * ours / max(1, theirs))
    )


def _by_passes(setting: DepthSetting, method: Method, costs: Costs | None) -> LayerScores:
    if method.in_blocks:
        assert costs is not None, "blocks by influence are scored in the ranking's own pass"
        return block_scores(without_blocks(setting, costs), method.depth)
    scoring = partial(_one_by_one, setting, method.depth, costs)
    if method.greedy:
        return LayerScores(removal_ranks(removal_order(setting.layers, scoring)))
    return LayerScores(scoring(()).float())


def _one_by_one(setting: DepthSetting, depth: Depth, costs: Costs | None, removed: Collection[int]) -> Tensor:
    """Return (L,) scores of the layers that are not in ``removed``; the others' are undefined."""
    by_cost = partial(without_each, setting, costs) if costs else partial(influence_without, setting)
    scores = by_cost(removed)
    left = [layer for layer in range(setting.layers) if layer not in removed]
    check_finite(scores[left], depth)
    return scores


def block_scores(blocks: Tensor, depth: Depth) -> LayerScores:
    """Turn the costs of removing blocks into scores.

    Args:
        blocks: (L, L) costs, +inf beyond the last layer.
        depth: the method that gave them.

    Raises:
        InputError: some are not finite.
    """
    for length, row in enumerate(blocks, start=1):
        check_finite(row[: len(blocks) + 1 - length], depth)
    layers, blocks = blocks[0].float(), blocks.float()
    blocks[-1] = torch.inf  # never remove all layers
    return LayerScores(layers.clone(), blocks)


def scores_by_cosines(setting: DepthSetting, cosines: BoundaryCosines) -> LayerScores:
    """Score blocks of layers by block influence.

    Args:
        setting: whose processes share the calibration set.
        cosines: collected in the ranking's pass.

    Raises:
        InputError: some are not finite.
    """
    mean = setting.mean(cosines.total, cosines.tokens)
    return block_scores(block_influence(mean), Depth.BLOCK_INFLUENCE)


def _by_generation(setting: DepthSetting, method: Method, judge: TaskScorer) -> Tensor:
    """Return (L,) float32: the loss of benchmark score without each layer.

    Removed layers still run, but return their input, so that the KV cache of a generating benchmark fills.
    """
    model, layers = setting.model, layer_modules(setting.model, setting.axis_map)
    passes = forward_passes(setting.axis_map, method) / (setting.layers + 1)
    blocks = sum(map(len, setting.batches)) * passes
    baseline, lost = judge(model), []
    setting.advance(blocks)
    for layer in range(setting.layers):
        with skipping_layers(layers, [layer]):
            lost.append(baseline - judge(model))
        setting.advance(blocks)
    scores = torch.tensor(lost)
    check_finite(scores, Depth.BENCHMARK)
    return scores


def check_finite(scores: Tensor, depth: Depth) -> None:
    """Check the scores of layers.

    Raises:
        InputError: one is not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            "What a teacher is worth without a layer has to be finite on the calibration set",
            f"by {depth.value} it is not",
            "Try --dtype float32, or another teacher",
        )
