"""Taylor importance: the first-order change of the loss without a unit, from one backward pass per block.

Removing a unit with weights w changes a block's loss by −Σ g·w to first order, where g is the loss's gradient
with respect to w. The unit's score is the mean over all blocks of (Σ g·w)²: Molchanov et al., "Importance
Estimation for Neural Network Pruning" (CVPR 2019, arXiv 1906.10771), section 3, with all weights of a unit as
one group.
Every block is a minibatch of its own, so scores do not depend on how blocks are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size
from evaluators.importance.method import Method, Width
from evaluators.importance.unit_scores import Scores, UnitSums, scores_of_units
from space.axes.axis_map import AxisMap, MappedTensor
from space.input_error import InputError


def check_width(method: Method, calibration: Tensor) -> None:
    """Check before any work that widths can be scored by this method.

    Raises:
        InputError: the blocks are too short to have a next-token loss.
    """
    if method.width is Width.TAYLOR and calibration.shape[1] < 2:
        raise InputError(
            "Units scored by the gradient of the loss need calibration blocks of two tokens or more",
            f"the blocks have {calibration.shape[1]}",
            "Take longer blocks, or score units by activations",
        )


class Taylor:
    """Streaming sums over blocks of (Σ g·w)² of each unit.

    Each gradient is freed as soon as it is added to the sums. So besides the weights, memory holds the
    activations of one block, and one gradient with its product.
    """

    def __init__(self, model: PreTrainedModel, axis_map: AxisMap) -> None:
        self.model, self.axis_map = model, axis_map
        self.totals = {key: torch.zeros_like(sums) for key, sums in self._zero_sums().sums.items()}
        self.blocks = 0
        self._block = UnitSums(axis_map)

    def read(self, tokens: Tensor) -> None:
        """Add one block, (T,) token ids with T at least 2, within the context of ``on``."""
        self._block = UnitSums(self.axis_map)
        backward_of_loss(self.model, tokens)
        for key, sums in self._block.sums.items():
            self.totals[key] += sums.square()
        self.blocks += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context, add the gradients of the mapped parameters to the units' sums."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_requiring_gradients(self.model, self._parameters()))
            for tensor, parameter in self._parameters():
                hook = parameter.register_post_accumulate_grad_hook(self._gradient_hook(tensor))
                stack.callback(hook.remove)
            yield

    def gather(self, accelerator: Accelerator) -> None:
        """Sum the totals over all processes; each of them has to call this."""
        device = accelerator.device
        for key, total in self.totals.items():
            self.totals[key] = accelerator.reduce(total.to(device), "sum")
        self.blocks = int(accelerator.reduce(torch.tensor(self.blocks, device=device), "sum"))

    @property
    def scores(self) -> Scores:
        """The scores of every axis but LAYERS, in the shapes of ``Ranking.scores``, float64."""
        assert self.blocks, "no block was read"
        return scores_of_units(
            self.axis_map, {key: total / self.blocks for key, total in self.totals.items()}
        )

    def _parameters(self) -> list[tuple[MappedTensor, nn.Parameter]]:
        buffers = self.axis_map.buffers
        mapped = [tensor for tensor in self.axis_map.tensors if tensor.name not in buffers]
        return [(tensor, self.model.get_parameter(tensor.name)) for tensor in mapped]

    def _zero_sums(self) -> UnitSums:
        sums = UnitSums(self.axis_map)
        for tensor, parameter in self._parameters():
            sums.add(tensor, torch.zeros((), device=parameter.device).expand(parameter.shape))
        return sums

    def _gradient_hook(self, tensor: MappedTensor) -> Callable[[Tensor], None]:
        def add_gradient(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._block.add(tensor, parameter.grad.float() * parameter.detach().float())
            parameter.grad = None

        return add_gradient


def backward_of_loss(model: PreTrainedModel, tokens: Tensor) -> None:
    """Backpropagate a block's mean next-token cross-entropy, with the logits of a few tokens at a time.

    Args:
        model: in evaluation mode.
        tokens: (T,) token ids.
    """
    states = final_states(model, tokens[None])[0, :-1]
    leaf = states.detach().requires_grad_()
    size = token_slice(vocabulary_size(model))
    for chunk, targets in zip(leaf.split(size), tokens[1:].split(size), strict=True):
        logits = logits_of(model, chunk).float()
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / (len(tokens) - 1)
        loss.backward()
    states.backward(leaf.grad)


@contextmanager
def _requiring_gradients(model: nn.Module, mapped: list[tuple[MappedTensor, nn.Parameter]]) -> Iterator[None]:
    """Within the context, only the mapped parameters require gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    gradients = [parameter.grad for parameter, _ in before]
    wanted = {id(parameter) for _, parameter in mapped}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
        parameter.grad = None
    try:
        yield
    finally:
        for (parameter, required), gradient in zip(before, gradients, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = gradient


def taylor_scores(
    model: PreTrainedModel,
    axis_map: AxisMap,
    batches: Iterable[Tensor],
    accelerator: Accelerator | None = None,
) -> Scores:
    """Return the mean over blocks of (Σ g·w)² of each unit.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        batches: (B, T) token ids, this process's share; blocks are read one by one.
        accelerator: of the processes that share the blocks; None if there is only one process.

    Returns:
        Scores of every axis but LAYERS, in the shapes of ``Ranking.scores``, float64.
    """
    taylor = Taylor(model, axis_map)
    with taylor.on():
        for batch in batches:
            for tokens in batch:
                taylor.read(tokens.to(model.device, torch.long))
    if accelerator is not None:
        taylor.gather(accelerator)
    return taylor.scores
