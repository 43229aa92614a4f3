"""A last look at the teacher and every model that was written: what it writes, and where size and time lie.

It is taken once. What was found is kept model by model, for a run that is started again and for the
workers that come to the end after the first.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.corpus import Corpus
from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.metrics.latency import Shares, latency_shares
from search.rungs.evaluation import Retrained
from search.stages.benchmarks import TEACHER
from search.stages.retraining import reload
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from space.counting.parts import Part, Parts, parts_of

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 32, 48
#: Of a short max_tokens the prompt takes this share at most.
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
class TextSample:
    """What one model wrote after one prompt."""

    text: str
    ended: bool
    """Whether it ended the text itself; else it was cut off."""


def prompts_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> Prompts:
    """Beginnings of documents of the validation text, spread over it; of blocks where too few begin.

    Args:
        corpus: of the run.
        tokenizer: the teacher's.
        max_tokens: tokens that the model reads at most; None if any number.
    """
    stream = corpus.validation.flatten()
    most = min(corpus.block, max_tokens or corpus.block, _PROMPT_TOKENS + _NEW_TOKENS)
    length = max(1, min(_PROMPT_TOKENS, int(_SHARE * most)))
    chosen = _spread(_beginnings(stream, tokenizer, length), _PROMPTS)
    blocks = [start for start in range(0, len(stream), corpus.block) if start not in chosen]
    chosen += _spread(blocks, _PROMPTS - len(chosen))
    rows = [_to_a_word(stream[start : start + length].tolist(), tokenizer) for start in chosen]
    texts = tuple(_decoded(tokenizer, _without_start(row, tokenizer)) for row in rows)
    return Prompts(tuple(rows), texts, min(_NEW_TOKENS, max(1, (max_tokens or most) - length)))


def sample_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> list[TextSample]:
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
        with quiet_libraries(), torch.no_grad():
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
) -> TextSample:
    ended = next((place for place, token in enumerate(made) if token in ends), None)
    written = made[:ended]
    whole = _decoded(tokenizer, _without_start([*prompt, *written], tokenizer))
    # Some tokenizers leave out the space before the first token, so the prompt goes along.
    alone = whole.removeprefix(text) if whole.startswith(text) else _decoded(tokenizer, written)
    return TextSample(alone, ended is not None)


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


@dataclass(frozen=True)
class LatencyBreakdown:
    """Measured times, and how they divide among the parts by shares that were timed with hooks."""

    prefill_ms: float
    decode_ms_per_token: float
    answer: int
    """Tokens of the answer, for the latency of prompt and answer together."""
    prefill: dict[str, float]
    """Milliseconds of each part; their sum is ``prefill_ms``."""
    decode: dict[str, float]
    """Milliseconds for each token of each part; their sum is ``decode_ms_per_token``."""


@dataclass(frozen=True)
class Breakdown:
    """Of one model."""

    parameters: dict[str, int]
    """By part, tied ones once; parts without any are left out."""
    latency: LatencyBreakdown


def breakdown_of(context: RunContext, model: PreTrainedModel, kept: Sequence[int]) -> Breakdown:
    """Take a model apart.

    Args:
        context: of the run.
        model: the teacher, or a student as transformers loads it.
        kept: the teacher's layers that it has, ascending.
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
    """What was found."""

    prompts: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    """By model (``teacher``, or the path of a retrained one) its ``continuations`` and its ``breakdown``, as
    the summary has them."""

    def of(self, model: str | None) -> dict[str, Any]:
        """What was found of a model; empty of one that was not kept."""
        return self.models.get(model or "", {"continuations": [], "breakdown": None})


def inspect(
    context: RunContext, retrained: Sequence[Retrained], directory: RunDirectory, console: Console
) -> Inspection:
    """Look at the teacher and at every model that was written.

    What an earlier process found is taken as it is. A model that cannot be looked at is left out, and tried
    again when the run is started again.

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
        try:
            model = context.teacher.model if name == TEACHER else reload(context, context.directory / name)
            found[name] = _look(context, model, prompts, layers[name])
        except Exception as error:  # whatever a class of somebody else's does; the run has its models
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            console.say(f"{name} cannot be looked at: {short_message(error)}")
        _write(directory, context, found)
    return Inspection(prompts.texts, found)


def _look(
    context: RunContext, model: PreTrainedModel, prompts: Prompts, layers: Sequence[int]
) -> dict[str, Any]:
    written: list[TextSample] = sample_texts(model, context.teacher.tokenizer, prompts)
    breakdown: Breakdown = breakdown_of(context, model, layers)
    return {"continuations": [asdict(one) for one in written], "breakdown": asdict(breakdown)}


def _read(directory: RunDirectory, context: RunContext) -> dict[str, dict[str, Any]]:
    """What was kept, if it is of this teacher and text."""
    if not directory.inspection.exists():
        return {}
    about = json.loads(directory.inspection.read_text())
    found: dict[str, dict[str, Any]] = about["models"] if about["of"] == _identity(context) else {}
    return found


def _write(directory: RunDirectory, context: RunContext, found: dict[str, dict[str, Any]]) -> None:
    about = {"of": _identity(context), "models": found}
    atomic_write(directory.inspection, json.dumps(about, indent=1))


def _identity(context: RunContext) -> list[str]:
    return [context.teacher.fingerprint, context.corpus.fingerprint]
