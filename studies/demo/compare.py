"""Is the embedded teacher worth compressing? Its held-out loss beside 5-grams, gzip and xz.

    python -m studies.demo.compare

All figures are bits per byte of the same text: the standard library's modules of the validation
split. Where a competitor can be run in several ways, its best figure counts. The exit status is 1
unless the teacher is clearly better than every one of them.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.blocks import Split, split_of
from evaluators.corpus.documents import standard_library
from space.input_error import InputError
from studies.demo import code_length, compressors
from studies.demo.code_length import Windows
from studies.demo.ngram import Integers, KneserNey

HERE = Path(__file__).parent
TEACHER = "embedded teacher"
ORDER = 5
#: Blocks as in training, blocks of twice that, and windows that give every token a past.
WINDOWS = (Windows(256, 256), Windows(512, 512), Windows(256, 128))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the embedded teacher is compared."""

    teacher: Path = HERE / "teacher"
    """Directory of the model and its tokenizer."""
    out: Path = HERE / "COMPARISON.md"
    """Where the table goes."""
    clearly: float = 1.05
    """Bits of the best competitor over bits of the teacher, at least."""
    threads: int | None = None
    """Of PyTorch; None leaves the choice to it."""


@dataclass(frozen=True)
class Texts:
    """The modules that the teacher never saw, and those it was trained on."""

    held_out: list[str]
    seen: list[str]

    @classmethod
    def of_the_standard_library(cls) -> Texts:
        """Split the installed Python's modules the way the teacher's training did."""
        held_out: list[str] = []
        seen: list[str] = []
        for document in standard_library():
            (held_out if split_of(document.name) is Split.VALIDATION else seen).append(document.text)
        return cls(held_out, seen)


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    how: str
    bits_per_byte: float


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher in float32 on the CPU, and its tokenizer.

    Raises:
        InputError: the directory holds no model.
    """
    if not (directory / "config.json").is_file():
        raise InputError(
            "--teacher has to be a directory with a model",
            f"{directory} has no config.json",
            "Train one with: python -m studies.demo.train --out DIRECTORY",
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    return model, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each text, without BOS; they give the text back."""
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for text, tokens in zip(texts, rows, strict=True):
        assert tokenizer.decode(tokens) == text, "a token count says nothing if the text is lost"
    return rows


def compressor_figures(texts: Texts) -> Iterator[Figure]:
    """Yield gzip's and xz's figures, each way of running them."""
    held_out, seen = ([text.encode() for text in part] for part in (texts.held_out, texts.seen))
    share = 8 / sum(map(len, held_out))
    for name, compressor in (("gzip -9", compressors.gzip_bytes), ("xz -9e", compressors.xz_bytes)):
        yield Figure(name, "each module alone", share * compressors.separately(compressor, held_out))
        yield Figure(name, "all as one file", share * compressors.together(compressor, held_out))
        added = compressors.after(compressor, seen, held_out)
        yield Figure(name, "added to the compressed training text", share * added)


def ngram_figures(texts: Texts, tokenizer: PreTrainedTokenizerBase) -> Iterator[Figure]:
    """Yield the figures of the 5-gram models, trained on the text that the teacher was trained on."""
    name = f"{ORDER}-gram, modified Kneser-Ney"
    size = sum(len(text.encode()) for text in texts.held_out)

    def tokens(part: list[str]) -> list[Integers]:
        return [np.array(row, dtype=np.int64) for row in encode(part, tokenizer)]

    def characters(part: list[str]) -> list[Integers]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in part]

    for unit, symbols, alphabet in (
        ("the teacher's tokens", tokens, len(tokenizer)),
        ("bytes", characters, 256),
    ):
        model = KneserNey(symbols(texts.seen), alphabet, ORDER)
        yield Figure(name, f"over {unit}", model.bits(symbols(texts.held_out)) / size)


def teacher_figures(
    texts: Texts, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Figure]:
    """Yield the teacher's figures, one for each of ``WINDOWS``."""
    documents = encode(texts.held_out, tokenizer)
    size = sum(len(text.encode()) for text in texts.held_out)
    for windows in WINDOWS:
        how = f"blocks of {windows.length} tokens"
        if windows.stride < windows.length:
            how = f"windows of {windows.length} tokens, {windows.stride} apart"
        bits = code_length.bits(model, documents, tokenizer.bos_token_id, windows)
        yield Figure(TEACHER, how, bits / size)


def best(figures: Sequence[Figure]) -> dict[str, float]:
    """Bits per byte of each name, in its best row."""
    return {
        name: min(figure.bits_per_byte for figure in figures if figure.name == name)
        for name in dict.fromkeys(figure.name for figure in figures)
    }


def smallest_ratio(figures: Sequence[Figure]) -> float:
    """Bits of the best competitor over bits of the teacher, each in its best row."""
    of_each = best(figures)
    teacher = of_each.pop(TEACHER)
    return min(of_each.values()) / teacher


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table; the best row of each name is bold."""
    of_each = best(figures)
    lines = ["| | how | bits per byte | times the teacher's |", "|---|---|--:|--:|"]
    for figure in figures:
        mark = "**" if figure.bits_per_byte == of_each[figure.name] else ""
        ratio = figure.bits_per_byte / of_each[TEACHER]
        lines.append(
            f"| {figure.name} | {figure.how} | {mark}{figure.bits_per_byte:.3f}{mark} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def page(texts: Texts, figures: Sequence[Figure], parameters: int) -> str:
    """COMPARISON.md: what was measured, on what, when, and the table."""
    size = sum(len(text.encode()) for text in texts.held_out)
    return f"""# The embedded teacher beside n-grams, gzip and xz

Written by `python -m studies.demo.compare` on {date.today().isoformat()}. The text is the standard library
of Python {platform.python_version()}: {len(texts.held_out)} modules of {size:,} bytes are held out; the
teacher, of {parameters:,} parameters, and the n-grams were trained on the other {len(texts.seen):,}.

{table(figures)}

Bits per byte of the held-out modules, lower is better; the best row of each is bold. Every token is
counted once and predicted from the tokens before it in its module, the first from BOS; in a window that
is not a module's first, the first target is predicted from the one token before it. No row pays for
where modules end. The best competitor takes {smallest_ratio(figures):.2f} times the teacher's bits.
"""


def compare(comparison: Comparison, texts: Texts, console: Console) -> bool:
    """Measure everything, write the page, and tell whether the teacher is clearly the best.

    Raises:
        InputError: there is no teacher.
    """
    model, tokenizer = load(comparison.teacher)
    figures: list[Figure] = []
    for rows in (
        teacher_figures(texts, model, tokenizer),
        ngram_figures(texts, tokenizer),
        compressor_figures(texts),
    ):
        for figure in rows:
            console.print(f"{figure.bits_per_byte:.3f} bits per byte: {figure.name}, {figure.how}")
            figures.append(figure)
    comparison.out.write_text(page(texts, figures, model.num_parameters()), encoding="utf-8")
    ratio = smallest_ratio(figures)
    holds = ratio >= comparison.clearly
    verdict = "clearly better" if holds else "not clearly better"
    console.print(
        f"\n{table(figures)}\n\nThe teacher is {verdict}: the best competitor takes {ratio:.3f} times its "
        f"bits; the bound is {comparison.clearly}. Written to {comparison.out}",
        markup=False,
    )
    return holds


def main() -> int:
    """The command line; returns the exit status."""
    comparison = tyro.cli(Comparison, description=__doc__)
    if comparison.threads is not None:
        torch.set_num_threads(comparison.threads)
    try:
        return 0 if compare(comparison, Texts.of_the_standard_library(), Console(soft_wrap=True)) else 1
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
