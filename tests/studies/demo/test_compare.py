"""The comparison from end to end on a tiny teacher, and what decides its exit status."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from evaluators.corpus.blocks import Split, split_of
from evaluators.corpus.documents import standard_library
from studies.demo.compare import (
    TEACHER,
    Comparison,
    Figure,
    Texts,
    compare,
    encode,
    main,
    smallest_ratio,
    table,
)

TEXTS = Texts(
    held_out=["def add(a, b):\n    return a + b\n" * 20, "print('größer')\n" * 9],
    seen=["def sub(a, b):\n    return a - b\n" * 50],
)
FIGURES = [
    Figure(TEACHER, "blocks", 1.2),
    Figure(TEACHER, "windows", 1.0),
    Figure("gzip -9", "each module alone", 1.5),
    Figure("xz -9e", "each module alone", 1.4),
    Figure("xz -9e", "all as one file", 1.3),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an untrained Llama and a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("teacher")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS.seen, trainer)
    backend = TokenizersBackend(tokenizer_object=tokenizer, bos_token="<s>")
    backend.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(backend),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_the_whole_comparison(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "COMPARISON.md"
    console = Console(width=400, record=True, soft_wrap=True)
    assert not compare(Comparison(teacher=teacher, out=out), TEXTS, console), (
        "an untrained model wins nothing"
    )
    page = out.read_text(encoding="utf-8")
    size = sum(len(text.encode()) for text in TEXTS.held_out)
    assert f"2 modules of {size:,} bytes are held out" in page
    assert page.count("| 5-gram, modified Kneser-Ney |") == 2
    assert page.count("| gzip -9 |") == page.count("| xz -9e |") == page.count(f"| {TEACHER} |") == 3
    assert "The teacher is not clearly better: the best competitor takes 0." in console.export_text()


def test_a_bound_that_holds(teacher: Path, tmp_path: Path) -> None:
    comparison = Comparison(teacher=teacher, out=tmp_path / "page.md", clearly=0.0)
    assert compare(comparison, TEXTS, Console(quiet=True))


def test_the_best_row_of_each_counts() -> None:
    assert smallest_ratio(FIGURES) == pytest.approx(1.3)


def test_the_table() -> None:
    assert table(FIGURES).splitlines()[2:] == [
        f"| {TEACHER} | blocks | 1.200 | 1.20 |",
        f"| {TEACHER} | windows | **1.000** | 1.00 |",
        "| gzip -9 | each module alone | **1.500** | 1.50 |",
        "| xz -9e | each module alone | 1.400 | 1.40 |",
        "| xz -9e | all as one file | **1.300** | 1.30 |",
    ]


def test_tokens_that_lose_text_are_refused(teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert encode(["größer"], tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(AssertionError, match="if the text is lost"):
        encode(["a b"], tokenizer)


def test_the_texts_are_the_splits_of_the_standard_library() -> None:
    texts = Texts.of_the_standard_library()
    sizes = Counter(split_of(document.name) for document in standard_library())
    assert len(texts.held_out) == sizes[Split.VALIDATION]
    assert len(texts.seen) == sizes[Split.CALIBRATION] + sizes[Split.DISTILLATION]
    assert not set(texts.held_out) & set(texts.seen)


def test_a_directory_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--teacher", str(tmp_path), "--out", str(tmp_path / "page")])
    assert main() == 2
    assert capsys.readouterr().err == (
        f"--teacher has to be a directory with a model; {tmp_path} has no config.json. "
        "Train one with: python -m studies.demo.train --out DIRECTORY.\n"
    )
    assert not (tmp_path / "page").exists()
