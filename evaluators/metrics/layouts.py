"""Which layout of documents a teacher knows: the one in which it foretells the same text best."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.layout import Layout, possible_layouts
from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size

logger = logging.getLogger(__name__)
#: Tokens of the text that decides, at most.
TOKENS = 4096
#: Tokens at the beginning of each block that do not count: there the layouts see different things.
_WARM_UP = 8
#: The tokenizer's own layout is kept unless another costs less by more than this share.
_WORTH = 0.005


@torch.no_grad()
def best_layout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], block: int
) -> Layout:
    """Return the layout in which the teacher's loss on some texts is lowest.

    The loss counts what separates the documents, and is divided by the tokens of the text alone.

    Args:
        model: the teacher, in evaluation mode.
        tokenizer: the teacher's.
        texts: documents.
        block: T, tokens per block.
    """
    layouts = possible_layouts(tokenizer)
    if len(layouts) == 1 or block <= 2 * _WARM_UP:
        return layouts[0]
    documents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    losses = [_loss(model, documents, layout, block) for layout in layouts]
    own, best = losses[0], min(losses)
    chosen = layouts[losses.index(best)] if best < (1 - _WORTH) * own else layouts[0]
    for layout, loss in zip(layouts, losses, strict=True):
        mark = ", taken" if layout is chosen else ""
        logger.info("the teacher's loss is %.3f nats with %s%s", loss, layout.words(tokenizer), mark)
    return chosen


def _loss(model: PreTrainedModel, documents: Sequence[list[int]], layout: Layout, block: int) -> float:
    """Return the nats of a text in a layout over the tokens of the text; infinite if it fills no block."""
    blocks, of_text = _blocks(documents, layout, block)
    if not len(blocks):
        return float("inf")
    total, counted = 0.0, 0
    for tokens, text in zip(blocks.split(1), of_text.split(1), strict=True):
        losses = _token_losses(model, tokens.to(model.device))
        total += float(losses[:, _WARM_UP:].sum())
        counted += int(text[:, _WARM_UP + 1 :].sum())
    return total / max(1, counted)


def _blocks(documents: Sequence[list[int]], layout: Layout, block: int) -> tuple[Tensor, Tensor]:
    """Return (N, T) tokens, and which of them are the text's own."""
    stream: list[int] = []
    own: list[bool] = []
    for document in documents:
        whole = layout.separated(document)
        leading = int(layout.before is not None and whole[:1] != document[:1])
        own += [leading <= place < leading + len(document) for place in range(len(whole))]
        stream += whole
    begun = layout.beginning is not None
    width = block - begun
    count = min(len(stream) // width, max(1, TOKENS // block))
    tokens = torch.tensor(stream[: count * width], dtype=torch.long).view(count, width)
    of_text = torch.tensor(own[: count * width], dtype=torch.bool).view(count, width)
    if not begun:
        return tokens, of_text
    first = torch.full((count, 1), layout.beginning or 0)
    return torch.cat([first, tokens], dim=1), torch.cat(
        [torch.zeros_like(first, dtype=torch.bool), of_text], dim=1
    )


def _token_losses(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return (B, T - 1) losses of the next tokens in nats, on the host."""
    states, nexts = final_states(model, tokens)[:, :-1], tokens[:, 1:]
    size = token_slice(vocabulary_size(model))
    parts = [
        nn.functional.cross_entropy(logits_of(model, some).float(), follows, reduction="none")
        for some, follows in zip(states.flatten(0, 1).split(size), nexts.flatten().split(size), strict=True)
    ]
    return torch.cat(parts).view(nexts.shape).cpu()
