"""How many bytes the stages that run the teacher or a student forward take beside weights, counted on code.

The counts run what the run runs, on tensors without values: the listeners of the ranking and of the moments,
passes without a layer, slices of logits, the KV cache. See ``live_bytes`` for how, and ``Depths`` for how a
few layers stand for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.caching import cache_argument, cache_of
from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size
from evaluators.importance.activations import ActivationListener
from evaluators.importance.layer_passes import PartialPasses
from evaluators.importance.layer_removal import BoundaryCosines, NextTokenLoss
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.moments import MomentsListener
from evaluators.importance.rank import aggregations
from evaluators.metrics.activation_memory import Depths
from evaluators.metrics.latency import Workload
from evaluators.metrics.live_bytes import counted, valueless, valueless_model
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName


@dataclass(frozen=True)
class ForwardWork:
    """A model of some sizes that runs forward without a gradient."""

    axis_map: AxisMap
    architecture: Architecture
    block: int
    """T, tokens of a block."""
    weights: torch.dtype
    autocast: bool = False
    """Whether products run in bfloat16 while weights stay as they are."""
    blocks: int = 1
    """B, blocks of a batch."""

    def counted(self, run: Callable[[PreTrainedModel, AxisMap, Tensor], object]) -> list[int]:
        """Count the most bytes of a run on one batch, and those of what it returns.

        Args:
            run: runs a model with the sizes of the map on (B, T) tokens.
        """

        def count(axis_map: AxisMap) -> list[int]:
            model = valueless_model(axis_map.config, self.weights)
            tokens = valueless(self.blocks, self.block, dtype=torch.long)
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)
            with torch.no_grad(), counted(model) as live:
                with autocast:
                    kept = run(model, axis_map, tokens)
                torch.clear_autocast_cache()
                found = [live.peak, live.now]
            del kept
            return found

        return Depths.of(self.axis_map, self.architecture).whole(count)

    def peak(self, run: Callable[[PreTrainedModel, AxisMap, Tensor], object]) -> int:
        """Count the most bytes of a run on one batch."""
        return self.counted(run)[0]


def scoring_bytes(work: ForwardWork) -> int:
    """Count a pass of the validation: final states, and logits of a slice of tokens in float32."""

    def run(model: PreTrainedModel, _: AxisMap, tokens: Tensor) -> None:
        states = final_states(model, tokens)
        NextTokenLoss(model, _few(model, tokens))(_few(model, states))

    return work.peak(run)


def _few(model: PreTrainedModel, values: Tensor) -> Tensor:
    """Return the tokens of two slices of logits: further ones take no more."""
    some = min(values.shape[0] * values.shape[1], 2 * token_slice(vocabulary_size(model)) + 1)
    return values.flatten(0, 1)[None, :some]


def ranking_bytes(work: ForwardWork, method: Method) -> int:
    """Count the passes of the ranking: its listeners, and passes without a layer where a loss scores them."""

    def listen(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> object:
        rotated = method.basis is not BasisName.COORDINATE
        listener = ActivationListener(model, axis_map, aggregations(method), covariance=rotated)
        influence = method.depth is Depth.BLOCK_INFLUENCE
        with listener.on(), BoundaryCosines(model, axis_map).on() if influence else nullcontext():
            listener.read(tokens)
        return listener

    def remove(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> None:
        passes = PartialPasses(model, axis_map, tokens)
        states = passes.without(0, 1)
        NextTokenLoss(model, _few(model, tokens))(_few(model, states))

    by_loss = method.by_task or method.depth in (Depth.PERPLEXITY, Depth.BLOCK_PERPLEXITY, Depth.DIVERGENCE)
    listened = work.peak(listen) if method.width is Width.ACTIVATIONS else 0
    return max(listened, work.peak(remove) if by_loss else 0)


def moments_bytes(work: ForwardWork) -> tuple[int, int]:
    """Count the pass of the moments: its height, and the sums in float64 that it leaves.

    Two batches are read, because sums are added into new tensors.
    """

    def run(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> object:
        listener = MomentsListener(model, axis_map)
        with listener.on():
            for _ in range(2):
                final_states(model, tokens)
        return listener

    peak, kept = work.counted(run)
    return peak, kept


def targets_bytes(work: ForwardWork, *, sampled: bool = False) -> int:
    """Count the pass of the targets, with the final states of a batch, or the distribution of a slice."""

    def run(model: PreTrainedModel, _: AxisMap, tokens: Tensor) -> None:
        states = final_states(model, tokens)
        if sampled:
            some = _few(model, states)[0, : token_slice(vocabulary_size(model))]
            probabilities = logits_of(model, some).float().softmax(-1)
            torch.special.entr(probabilities).sum(-1)
            probabilities.double().cumsum(-1)
        else:
            states.to(torch.bfloat16)

    return work.peak(run)


def generating_bytes(work: ForwardWork, workload: Workload) -> int:
    """Count a prefill and one decoded token, with the KV cache."""

    def run(model: PreTrainedModel, _: AxisMap, tokens: Tensor) -> None:
        prompt = tokens.flatten()[: workload.batch * workload.prompt].view(workload.batch, workload.prompt)
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        model(input_ids=token, use_cache=True, **{cache_argument(model): cache_of(output)})

    return replace(work, block=workload.batch * workload.prompt, blocks=1).peak(run)
