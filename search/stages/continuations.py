"""What models write after the same beginnings of texts that none was trained on, for people to compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.corpus import Corpus
from evaluators.huggingface.quiet import quiet

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 32, 48
#: Of a short context the prompt takes this share at most.
_SHARE = 0.4


@dataclass(frozen=True)
class Prompts:
    """The same beginnings for all models."""

    tokens: tuple[list[int], ...]
    """Of each, with the one that begins a document, where the tokenizer has it."""
    texts: tuple[str, ...]
    new_tokens: int
    """So many are made after each at most."""


@dataclass(frozen=True)
class Continuation:
    """What one model wrote after one prompt."""

    text: str
    ended: bool
    """Whether it ended the text itself; else it was cut off."""


def prompts_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Prompts:
    """Beginnings of documents of the validation text, spread over it; of blocks where too few begin.

    Args:
        corpus: of the run.
        tokenizer: the teacher's.
        context: tokens that the model reads at most; None if any number.
    """
    stream = corpus.validation.flatten()
    most = min(corpus.block, context or corpus.block, _PROMPT_TOKENS + _NEW_TOKENS)
    length = max(1, min(_PROMPT_TOKENS, int(_SHARE * most)))
    chosen = _spread(_beginnings(stream, tokenizer, length), _PROMPTS)
    blocks = [start for start in range(0, len(stream), corpus.block) if start not in chosen]
    chosen += _spread(blocks, _PROMPTS - len(chosen))
    rows = [_to_a_word(stream[start : start + length].tolist(), tokenizer) for start in chosen]
    texts = tuple(_decoded(tokenizer, _without_start(row, tokenizer)) for row in rows)
    return Prompts(tuple(rows), texts, min(_NEW_TOKENS, max(1, (context or most) - length)))


def continuations_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> list[Continuation]:
    """The likeliest token after the other, with a KV cache, until a text ends or is long enough."""
    ends = _ends(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=prompts.new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    found = []
    for tokens, text in zip(prompts.tokens, prompts.texts, strict=True):
        tokens_1T = torch.tensor([tokens], device=model.device)
        with quiet(), torch.no_grad():
            whole: Tensor = model.generate(  # type: ignore[operator]
                tokens_1T, attention_mask=torch.ones_like(tokens_1T), generation_config=settings
            )
        found.append(_continuation(tokens, whole[0, len(tokens) :].tolist(), text, ends, tokenizer))
    return found


def _beginnings(stream: Tensor, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """Where documents begin of which at least so many tokens are there."""
    begins = tokenizer.bos_token_id is not None
    separator = tokenizer.bos_token_id if begins else tokenizer.eos_token_id
    if separator is None:
        return []
    places = (stream == separator).nonzero().flatten().tolist()
    starts = places if begins else [0, *(place + 1 for place in places)]
    ends = [*starts[1:], len(stream)]
    return [start for start, end in zip(starts, ends, strict=True) if end - start >= length]


def _spread(places: list[int], number: int) -> list[int]:
    """So many of the places, or all if there are fewer."""
    number = min(number, len(places))
    return [places[one * len(places) // number] for one in range(number)]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text."""
    named = model.generation_config.eos_token_id
    found = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(end for end in (*found, tokenizer.eos_token_id) if end is not None))


def _continuation(
    prompt: list[int], made: list[int], text: str, ends: list[int], tokenizer: PreTrainedTokenizerBase
) -> Continuation:
    ended = next((place for place, token in enumerate(made) if token in ends), None)
    written = made[:ended]
    whole = _decoded(tokenizer, _without_start([*prompt, *written], tokenizer))
    # Some tokenizers leave out the space before the first token, so the prompt goes along.
    alone = whole.removeprefix(text) if whole.startswith(text) else _decoded(tokenizer, written)
    return Continuation(alone, ended is not None)


def _to_a_word(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As many of the tokens as end with a word, if that leaves at least half of them."""
    for length in range(len(tokens) - 1, len(tokens) // 2, -1):
        text, longer = (_decoded(tokenizer, tokens[:end]) for end in (length, length + 1))
        if longer.startswith(text) and longer[len(text) :][:1].isspace():
            return tokens[:length]
    return tokens


def _without_start(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokens[1:] if tokens[:1] == [tokenizer.bos_token_id] else tokens


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
