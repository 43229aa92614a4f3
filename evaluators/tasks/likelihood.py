"""Log-likelihoods of the choices of examples, in batches of about equal length.

Texts become tokens as in lm-evaluation-harness (arXiv 2405.14782): context and choice are encoded together,
and what lies beyond the context's own tokens is the choice; an empty context is the beginning-of-text token,
or the end of text where the tokenizer has no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.huggingface.final_states import final_states, logits_of, token_slice, vocabulary_size
from evaluators.tasks.examples import Example, numbered
from evaluators.tasks.score_cache import ScoreCache
from space.input_error import InputError

#: Tokens of one forward pass, padding included.
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class EncodedChoice:
    """A choice as tokens."""

    row: int
    """Number of its example."""
    column: int
    """Its number among the choices."""
    ids: tuple[int, ...]
    """Token ids of context and choice."""
    start: int
    """Index of the choice's first token, at least 1."""

    @property
    def predicted(self) -> int:
        """Number of tokens whose likelihood counts."""
        return len(self.ids) - self.start


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int | None = None
) -> list[EncodedChoice]:
    """Return every choice of every example as tokens.

    Args:
        tokenizer: the teacher's, which is the students'.
        examples: the task's.
        longest: most tokens that a model reads; what is longer loses the beginning of its context.

    Raises:
        InputError: the tokenizer has neither a beginning nor an end of text, or a choice has no token.
    """
    return [
        EncodedChoice(row, column, *_encoded(tokenizer, context, text, longest))
        for row, column, context, text in numbered(examples)
    ]


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model was made for; None if its config does not say."""
    config = model.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 1 else None


@dataclass(frozen=True, eq=False)
class ChoiceBatch:
    """Choices that run through a model together, padded at the end.

    In a causal model nothing looks ahead, so that padding needs no mask.
    """

    choices: Sequence[EncodedChoice]
    numbers: Sequence[int]
    """The place of each among all choices."""

    @property
    def tokens(self) -> Tensor:
        """(B, T) token ids, on the host; 0 after the end of a shorter row."""
        rows = [torch.tensor(choice.ids) for choice in self.choices]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def answer_states(self, states: Tensor) -> Tensor:
        """Return (m, D) of the (B, T, D) final states: those before each token of the choices."""
        spans = [(row, one.start - 1, len(one.ids) - 1) for row, one in enumerate(self.choices)]
        return torch.cat([states[row, begin:end] for row, begin, end in spans])

    def log_likelihoods(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """Return (B,) float64 log-likelihoods of the choices, in nats, on the host.

        Args:
            model: whose head turns states into logits.
            states: (B, T, D) final states.
        """
        size = token_slice(vocabulary_size(model))
        nexts = torch.cat([torch.tensor(one.ids[one.start :]) for one in self.choices]).to(states.device)
        parts = zip(self.answer_states(states).split(size), nexts.split(size), strict=True)
        losses = [
            nn.functional.cross_entropy(logits_of(model, s).float(), n, reduction="none") for s, n in parts
        ]
        counts = torch.tensor([one.predicted for one in self.choices])
        owners = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return torch.zeros(len(counts), dtype=torch.float64).index_add_(
            0, owners, -torch.cat(losses).double().cpu()
        )


def choice_batches(choices: Sequence[EncodedChoice]) -> Iterator[ChoiceBatch]:
    """Yield the choices in batches of like lengths, the longest first."""
    for numbers in batches_by_length([len(choice.ids) for choice in choices]):
        yield ChoiceBatch([choices[number] for number in numbers], numbers)


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    choices: Sequence[EncodedChoice],
    advance: Callable[[int], None] = lambda choices: None,
    cache: ScoreCache | None = None,
) -> Tensor:
    """Return (C,) float64 log-likelihoods of the choices, in nats: sums over their tokens.

    Args:
        model: in evaluation mode.
        choices: from ``encode_choices``.
        advance: called with the number of choices done.
        cache: where they are kept as they come; what it has is not scored again.
    """
    assert not model.training, "tasks are scored in evaluation mode"
    found = torch.full((len(choices),), torch.nan, dtype=torch.float64)
    if cache is not None:
        found = cache.read(len(choices))
    missing = [number for number in range(len(choices)) if found[number].isnan()]
    advance(len(choices) - len(missing))
    for batch in choice_batches([choices[number] for number in missing]):
        numbers = [missing[number] for number in batch.numbers]
        found[numbers] = batch.log_likelihoods(model, final_states(model, batch.tokens.to(model.device)))
        if cache is not None:
            cache.add(numbers, found[numbers])
        advance(len(numbers))
    return found


def batches_by_length(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """Return the numbers of the rows in batches of like lengths, longest first.

    Args:
        lengths: tokens of each row.
        most: tokens of a batch with its padding; a longer row is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    batches: list[list[int]] = []
    for number in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= most:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _encoded(
    tokenizer: PreTrainedTokenizerBase, context: str, text: str, longest: int | None
) -> tuple[tuple[int, ...], int]:
    """Return the token ids of context and text, and the index of the text's first."""
    kept = context.rstrip()
    text = context[len(kept) :] + text  # white space between them belongs to what follows
    if kept:
        ids, start = tokenizer.encode(kept + text), len(tokenizer.encode(kept))
    else:
        ids, first = tokenizer.encode(text, add_special_tokens=False), beginning(tokenizer)
        ids, start = (ids if ids[:1] == [first] else [first, *ids]), 1
    if not 1 <= start < len(ids):
        raise InputError(
            "A choice of a task has to have tokens of its own, after those of its context",
            f"{text!r} after {kept[-40:]!r} has none",
            "Let the context end where a word ends",
        )
    if longest is not None and (cut := len(ids) - longest - 1) > 0:
        ids, start = ids[cut:], max(1, start - cut)
    return tuple(ids), start


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id that stands for an empty context.

    Raises:
        InputError: the tokenizer has neither a beginning nor an end of text.
    """
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(found, int):
            return found
    raise InputError(
        "A text without a context is scored after the token that begins a text, or ends one",
        "this tokenizer has neither",
        "Give each example a context",
    )
