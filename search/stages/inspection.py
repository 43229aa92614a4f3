"""Inspection of the teacher and every written model: sample texts, and parameters and latency by part.

Each model is inspected once. Results are saved model by model, for a run that is started again and for
workers that reach the end after the first one.
"""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.blocks import Corpus
from evaluators.corpus.mixture import losses_by_source
from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.metrics.latency import Shares, latency_shares
from evaluators.metrics.loss import validation_loss
from search.rungs.evaluation import Retrained
from search.stages.benchmarks import TEACHER, written_model
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from space.counting.parts import Part, Parts, parts_of

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 32, 48
#: Where few tokens are available, the prompt takes at most this share of them.
_SHARE = 0.4


@dataclass(frozen=True)
class Prompts:
    """Prompts, the same for all models."""

    tokens: tuple[list[int], ...]
    """Token ids of each prompt; they begin with the BOS token where the documents do."""
    texts: tuple[str, ...]
    new_tokens: int
    """Maximum number of tokens to generate after each prompt."""


@dataclass(frozen=True)
class TextSample:
    """The continuation of one prompt by one model."""

    text: str
    ended: bool
    """Whether the model ended the text itself; otherwise it was cut off."""


def prompts_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> Prompts:
    """Take prompts from the starts of validation documents, evenly spread; where too few, from block starts.

    Args:
        corpus: corpus of the run.
        tokenizer: the teacher's tokenizer.
        max_tokens: context length of the model; None if it is unlimited.
    """
    stream = corpus.validation.flatten()
    most = min(corpus.block, max_tokens or corpus.block, _PROMPT_TOKENS + _NEW_TOKENS)
    length = max(1, min(_PROMPT_TOKENS, int(_SHARE * most)))
    chosen = _spread(_document_starts(corpus, length), _PROMPTS)
    blocks = [start for start in range(0, len(stream), corpus.block) if start not in chosen]
    chosen += _spread(blocks, _PROMPTS - len(chosen))
    rows = [_to_a_word(stream[start : start + length].tolist(), tokenizer) for start in chosen]
    texts = tuple(_decoded(tokenizer, _without_start(row, tokenizer)) for row in rows)
    return Prompts(tuple(rows), texts, min(_NEW_TOKENS, max(1, (max_tokens or most) - length)))


def sample_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> list[TextSample]:
    """Continue each prompt by greedy decoding with a KV cache, until the text ends or is long enough."""
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
        with quiet_libraries(), torch.no_grad():
            whole: Tensor = model.generate(  # type: ignore[operator]
                tokens_1T, attention_mask=torch.ones_like(tokens_1T), generation_config=settings
            )
        found.append(_continuation(tokens, whole[0, len(tokens) :].tolist(), text, ends, tokenizer))
    return found


def _document_starts(corpus: Corpus, length: int) -> list[int]:
    """Find where documents of at least ``length`` tokens start in the stream of validation blocks."""
    layout, stream = corpus.layout, corpus.validation.flatten()
    if layout.before is not None:
        starts = (stream == layout.before).nonzero().flatten().tolist()
        if layout.beginning == layout.before:  # what begins a block begins no document
            starts = [start for start in starts if start % corpus.block]
    elif layout.after is not None:
        starts = [0, *(place + 1 for place in (stream == layout.after).nonzero().flatten().tolist())]
    else:
        return []
    ends = [*starts[1:], len(stream)]
    return [start for start, end in zip(starts, ends, strict=True) if end - start >= length]


def _spread(places: list[int], number: int) -> list[int]:
    """Pick ``number`` evenly spread places, or all if there are fewer."""
    number = min(number, len(places))
    return [places[one * len(places) // number] for one in range(number)]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a text."""
    named = model.generation_config.eos_token_id
    found = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(end for end in (*found, tokenizer.eos_token_id) if end is not None))


def _continuation(
    prompt: list[int], made: list[int], text: str, ends: list[int], tokenizer: PreTrainedTokenizerBase
) -> TextSample:
    ended = next((place for place, token in enumerate(made) if token in ends), None)
    written = made[:ended]
    whole = _decoded(tokenizer, _without_start([*prompt, *written], tokenizer))
    # Some tokenizers drop the space before the first token, so decode prompt and continuation together.
    alone = whole.removeprefix(text) if whole.startswith(text) else _decoded(tokenizer, written)
    return TextSample(alone, ended is not None)


def _to_a_word(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Shorten the tokens to end with a whole word, if that keeps at least half of them."""
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


@dataclass(frozen=True)
class LatencyBreakdown:
    """Measured times, and their division among the parts of a model, by shares timed with hooks."""

    prefill_ms: float
    decode_ms_per_token: float
    answer: int
    """Generated tokens that the total latency assumes."""
    prefill: dict[str, float]
    """Milliseconds of each part; their sum is ``prefill_ms``."""
    decode: dict[str, float]
    """Milliseconds per token of each part; their sum is ``decode_ms_per_token``."""


@dataclass(frozen=True)
class Breakdown:
    """Parameters and latency of one model by part."""

    parameters: dict[str, int]
    """Parameter count by part; tied ones count once, parts without any are left out."""
    latency: LatencyBreakdown


def breakdown_of(context: RunContext, model: PreTrainedModel, kept: Sequence[int]) -> Breakdown:
    """Break down a model's parameters and latency by part.

    Args:
        context: context of the run.
        model: the teacher, or a student as transformers loads it.
        kept: indices of the teacher's layers that the model has, ascending.
    """
    parts = parts_of(model, context.axis_map, kept)
    latency = context.latency(model)
    shares = latency_shares(
        model, {name: part.value for name, part in parts.modules.items()}, context.workload
    )
    return Breakdown(
        _counted(model, parts),
        LatencyBreakdown(
            latency.prefill_ms,
            latency.decode_ms_per_token,
            latency.answer,
            _scaled(shares.prefill, latency.prefill_ms),
            _scaled(shares.decode, latency.decode_ms_per_token),
        ),
    )


def _counted(model: PreTrainedModel, parts: Parts) -> dict[str, int]:
    counts: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        counts[parts.parameters[name]] += parameter.numel()
    return {part.value: counts[part] for part in Part if counts[part]}


def _scaled(shares: Shares, whole: float) -> dict[str, float]:
    return {part: share * whole for part, share in shares.items()}


@dataclass(frozen=True)
class Inspection:
    """The results of the inspection."""

    prompts: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    """By model (``teacher``, or the path of a retrained model): ``continuations``, ``breakdown``
    and, of a mixture, ``source_losses``, in the form of the summary."""

    def of(self, model: str | None) -> dict[str, Any]:
        """Return the results of a model; empty ones for a model that was not kept."""
        return self.models.get(model or "", {"continuations": [], "breakdown": None})


def inspect(
    context: RunContext, retrained: Sequence[Retrained], directory: RunDirectory, console: Console
) -> Inspection:
    """Inspect the teacher and every written model.

    Results of earlier processes are reused. A model whose inspection fails is left out, and tried again
    when the run is started again.

    Raises:
        OSError: the disk is full.
    """
    max_tokens = getattr(context.teacher.model.config, "max_position_embeddings", None)
    prompts = prompts_of(context.corpus, context.teacher.tokenizer, max_tokens)
    layers = {
        TEACHER: list(range(context.axis_map.teacher.layers)),
        **{result.path: context.kept_layers(result.architecture) for result in retrained if result.path},
    }
    kept = _read(directory, context)
    found = {model: kept[model] for model in layers if model in kept}
    for name in (model for model in layers if model not in found):
        console.say(f"looking at {name}: what it writes, and where its parameters and its time lie")
        try:
            with written_model(context, name) as model:
                found[name] = _inspect_model(context, model, prompts, layers[name])
        except Exception as error:  # third-party model code may raise anything; the models are written
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            console.say(f"{name} cannot be looked at: {short_message(error)}")
        _write(directory, context, found)
    return Inspection(prompts.texts, found)


def _inspect_model(
    context: RunContext, model: PreTrainedModel, prompts: Prompts, layers: Sequence[int]
) -> dict[str, Any]:
    written: list[TextSample] = sample_texts(model, context.teacher.tokenizer, prompts)
    breakdown: Breakdown = breakdown_of(context, model, layers)
    found: dict[str, Any] = {
        "continuations": [asdict(one) for one in written],
        "breakdown": asdict(breakdown),
    }
    if context.corpus.sources:
        losses = losses_by_source(context.corpus, partial(validation_loss, model))
        found["source_losses"] = [value if math.isfinite(value) else None for value in losses]
    return found


def _read(directory: RunDirectory, context: RunContext) -> dict[str, dict[str, Any]]:
    """Read the saved results, if they are of this teacher and text."""
    if not directory.inspection.exists():
        return {}
    saved = json.loads(directory.inspection.read_text())
    found: dict[str, dict[str, Any]] = saved["models"] if saved["of"] == _identity(context) else {}
    return found


def _write(directory: RunDirectory, context: RunContext, found: dict[str, dict[str, Any]]) -> None:
    saved = {"of": _identity(context), "models": found}
    atomic_write(directory.inspection, json.dumps(saved, indent=1))


def _identity(context: RunContext) -> list[str]:
    return [context.teacher.fingerprint, context.corpus.fingerprint]
