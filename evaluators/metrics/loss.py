"""The loss objective: cross-entropy on the validation blocks, and its conversion to other units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.training import Advance
from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size
from evaluators.teacher.layer_by_layer import TeacherFiles

#: Tokens of one forward pass.
_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    blocks: Tensor,
    learnt: Tensor | None = None,
    advance: Advance = lambda tokens: None,
) -> float:
    """Return the mean cross-entropy of the next token, in nats per token; NaN if the model returns NaN.

    Args:
        model: in evaluation mode.
        blocks: (N, T) token ids; the first token of a block is not predicted.
        learnt: (N, T) bool, True at each token whose next one counts, somewhere at least; None: all count.
        advance: called with the number of tokens that are read.
    """
    assert not model.training, "losses are measured in evaluation mode"
    total = 0.0
    for batch, counted in zip(_batches(blocks), _batches(_counted(blocks, learnt)), strict=True):
        tokens = batch.to(device=model.device, dtype=torch.long)
        total += _summed_loss(model, final_states(model, tokens), tokens, counted)
        advance(batch.numel())
    return total / predicted_tokens(blocks, learnt)


@torch.no_grad()
def validation_loss_from_disk(
    files: TeacherFiles,
    blocks: Tensor,
    learnt: Tensor | None = None,
    advance: Advance = lambda tokens: None,
) -> float:
    """Return ``validation_loss`` of a teacher of which one layer at a time is in memory.

    Args:
        files: the teacher's.
        blocks: (N, T) token ids.
        learnt: (N, T) bool, see ``validation_loss``.
        advance: called with the number of tokens that are read.

    Raises:
        InputError: the layers share more than the residual stream, or the states do not fit on the disk.
    """
    parts, total = _batches(blocks), 0.0
    with files.opened() as layers:
        every = zip(parts, layers.final(parts), _batches(_counted(blocks, learnt)), strict=True)
        for batch, states, counted in every:
            total += _summed_loss(layers.model, states, batch.to(states.device, torch.long), counted)
            advance(batch.numel())
    return total / predicted_tokens(blocks, learnt)


def predicted_tokens(blocks: Tensor, learnt: Tensor | None = None) -> int:
    """Return the number of tokens that a validation loss is the mean of."""
    return int(_counted(blocks, learnt)[:, :-1].sum())


def _counted(blocks: Tensor, learnt: Tensor | None) -> Tensor:
    if learnt is None:
        return torch.ones_like(blocks, dtype=torch.bool)
    assert learnt[:, :-1].any(), "a mean over no token"
    return learnt


def _batches(blocks: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = blocks.split(max(1, _TOKENS_AT_ONCE // blocks.shape[1]))
    return parts


def _summed_loss(model: PreTrainedModel, final: Tensor, tokens: Tensor, counted: Tensor) -> float:
    """Return the sum of the losses of (B, T) tokens that count, from their (B, T, D) final states."""
    total = torch.zeros((), dtype=torch.float64)
    size, chosen = token_slice(vocabulary_size(model)), counted[:, :-1].to(tokens.device)
    states, nexts = final[:, :-1][chosen], tokens[:, 1:][chosen]
    for some, targets in zip(states.split(size), nexts.split(size), strict=True):
        logits = logits_of(model, some).float()
        total += nn.functional.cross_entropy(logits, targets, reduction="sum").cpu()
    return float(total)


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Convert a loss to bits per byte of text, which is comparable between tokenizers.

    Args:
        loss: nats per token.
        tokens: tokens of the text.
        text_bytes: UTF-8 bytes of the same text.
    """
    return loss * tokens / text_bytes / math.log(2)


def perplexity(loss: float) -> float:
    """Return the perplexity of a loss in nats per token; infinite if a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
