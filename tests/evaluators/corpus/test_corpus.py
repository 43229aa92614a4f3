from __future__ import annotations

import itertools
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evaluators.corpus.blocks import Split, split_of
from evaluators.corpus.corpus import Corpus, CorpusRequest, read_corpus
from evaluators.corpus.documents import standard_library
from space.input_error import InputError

REUSING = "reusing the text of"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """About 1 MB of words in lines."""
    random.seed(1)
    words = ["a", "story", "of", "teacher", "and", "student", "über", "Öl"]
    lines = (" ".join(random.choices(words, k=10)) + "\n" + "\n" * (n % 7 == 0) for n in range(20_000))
    path = tmp_path / "text.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def request(data: Path | str, **changes: int) -> CorpusRequest:
    sizes: dict[str, Any] = {
        "block": 32,
        "calibration_blocks": 8,
        "distillation_blocks": 40,
        "validation_blocks": 8,
    }
    return CorpusRequest(data=str(data), **{**sizes, **changes})


def refused(request: CorpusRequest, tokenizer: PreTrainedTokenizerBase, cache: Path) -> str:
    with pytest.raises(InputError) as refusal:
        read_corpus(request, tokenizer, cache)
    return str(refusal.value)


def same(left: Corpus, right: Corpus) -> bool:
    return left.fingerprint == right.fingerprint and all(
        torch.equal(left.blocks[split], right.blocks[split]) for split in Split
    )


def documents_in(blocks: torch.Tensor, separator: int) -> set[tuple[int, ...]]:
    """The documents that begin within the blocks, without the last, which may be cut."""
    documents: list[list[int]] = []
    for token in blocks.flatten().tolist():
        if token == separator:
            documents.append([])
        elif documents:
            documents[-1].append(token)
    return {tuple(document) for document in documents[:-1]}


def test_every_split_has_its_blocks(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
    assert corpus.id == str(text)
    assert corpus.block == 32
    assert {split.value: tuple(tokens.shape) for split, tokens in corpus.blocks.items()} == {
        "calibration": (8, 32),
        "distillation": (40, 32),
        "validation": (8, 32),
    }
    assert {tokens.dtype for tokens in corpus.blocks.values()} == {torch.int32}


def test_splits_share_no_document(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    everything = request(text, calibration_blocks=10**6, distillation_blocks=10**6, validation_blocks=10**6)
    corpus = read_corpus(everything, byte_tokenizer, tmp_path / "cache")
    splits = [documents_in(corpus.blocks[split], 0) for split in Split]
    assert all(splits)
    assert not splits[0] & splits[1]
    assert not splits[1] & splits[2]
    assert not splits[0] & splits[2]
    tokens = sum(block.numel() for block in corpus.blocks.values())
    assert tokens == pytest.approx(len(text.read_bytes()), rel=0.01)


def test_copies_of_a_document_change_nothing(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(text.read_bytes())
    once = read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
    twice = read_corpus(request(folder), byte_tokenizer, tmp_path / "cache")
    assert same(once, twice)


def test_validation_bytes_are_those_of_the_validation_text(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
    separators = int((corpus.validation == 0).sum())
    assert corpus.validation.numel() - separators - 1 <= corpus.validation_bytes
    assert corpus.validation_bytes <= corpus.validation.numel() - separators


def test_fingerprints_tell_texts_and_blocks_apart(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    cache = tmp_path / "cache"
    first = read_corpus(request(text), byte_tokenizer, cache)
    assert len(first.fingerprint) == 64
    for changed in ({"block": 16, "calibration_blocks": 16}, {"validation_blocks": 7}):
        assert read_corpus(request(text, **changed), byte_tokenizer, cache).fingerprint != first.fingerprint
    text.write_text(text.read_text(encoding="utf-8").replace("teacher", "Teacher"), encoding="utf-8")
    assert not same(read_corpus(request(text), byte_tokenizer, cache), first)


def test_fewer_blocks_are_the_first_of_more(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    few = read_corpus(request(text), byte_tokenizer, tmp_path)
    many = read_corpus(request(text, distillation_blocks=400), byte_tokenizer, tmp_path)
    assert torch.equal(many.distillation[:40], few.distillation)


class TestTheStandardLibrary:
    def test_validation_is_text_that_the_embedded_teacher_never_saw(
        self, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        corpus = read_corpus(request("stdlib", validation_blocks=3000), byte_tokenizer, tmp_path)
        assert corpus.id == "the Python standard library"
        names = modules_in(corpus.validation, byte_tokenizer)
        assert names
        assert {split_of(name) for name in names} == {Split.VALIDATION}

    @pytest.mark.slow
    def test_distillation_is_not_one_corner_of_it(
        self, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        corpus = read_corpus(request("stdlib", distillation_blocks=30_000), byte_tokenizer, tmp_path)
        names = modules_in(corpus.distillation, byte_tokenizer)
        assert {split_of(name) for name in names} == {Split.DISTILLATION}
        assert len({name[0] for name in names}) > 5
        assert len({name.split("/")[0] for name in names}) > 20


def modules_in(blocks: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> set[str]:
    names = {module.text: module.name for module in standard_library()}
    return {names[str(tokenizer.decode(list(tokens)))] for tokens in documents_in(blocks, 0)}


class TestTheCache:
    def test_a_second_reading_reuses_it_and_says_so(
        self,
        text: Path,
        tmp_path: Path,
        byte_tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "evaluators")
        first = read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
        assert REUSING not in caplog.text
        moved = text.rename(tmp_path / "moved.txt")
        second = read_corpus(request(moved), byte_tokenizer, tmp_path / "cache")
        assert f"{REUSING} {moved}" in caplog.text
        assert same(first, second)
        assert (second.id, second.validation_bytes) == (str(moved), first.validation_bytes)

    @pytest.mark.parametrize("change", ["text", "tokenizer", "block"])
    def test_whatever_decides_the_blocks_is_read_anew(
        self,
        change: str,
        text: Path,
        tmp_path: Path,
        byte_tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
        caplog.set_level(logging.INFO, "evaluators")
        tokenizer, sizes = byte_tokenizer, {}
        if change == "text":
            text.write_text(text.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
        elif change == "tokenizer":
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token=byte_tokenizer.eos_token
            )
        else:
            sizes = {"block": 16}
        read_corpus(request(text, **sizes), tokenizer, tmp_path / "cache")
        assert REUSING not in caplog.text

    @pytest.mark.parametrize("damage", ["torn", "foreign", "flipped", "empty", "another's"])
    def test_a_file_that_is_not_what_was_kept_is_not_used(
        self,
        damage: str,
        text: Path,
        tmp_path: Path,
        byte_tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        cache = tmp_path / "cache"
        first = read_corpus(request(text), byte_tokenizer, cache)
        (kept,) = cache.iterdir()
        whole = kept.read_bytes()
        read_corpus(request(text, block=16), byte_tokenizer, tmp_path / "others")
        (other,) = (tmp_path / "others").iterdir()
        damaged = {
            "torn": whole[: len(whole) // 2],
            "foreign": b"not a corpus",
            "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
            "empty": b"",
            "another's": other.read_bytes(),
        }
        kept.write_bytes(damaged[damage])
        caplog.set_level(logging.INFO, "evaluators")
        assert same(read_corpus(request(text), byte_tokenizer, cache), first)
        assert f"the kept text {kept} cannot be used" in caplog.text
        caplog.clear()
        read_corpus(request(text), byte_tokenizer, cache)
        assert REUSING in caplog.text

    def test_a_run_that_dies_while_writing_leaves_nothing_half_done(
        self,
        text: Path,
        tmp_path: Path,
        byte_tokenizer: PreTrainedTokenizerFast,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def killed(source: object, target: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []


def test_too_little_text_says_how_much_there_is(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a short text\n")
    message = refused(request(path), byte_tokenizer, tmp_path / "cache")
    assert message == (
        "calibration, distillation and validation need at least one block of 32 tokens each; "
        f"{path} has 0 tokens for calibration, 14 tokens for distillation, 0 tokens for validation, "
        "in 1 documents, of which about one in 20 each goes to calibration and validation. "
        "Give a text of at least 1280 tokens in 100 documents or more."
    )
    assert not (tmp_path / "cache").exists()


def test_a_hundred_kilobytes_are_enough(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "small.txt"
    path.write_text("".join(f"Line {number} of a text without blank lines.\n" for number in range(2500)))
    corpus = read_corpus(request(path), byte_tokenizer, tmp_path / "cache")
    assert min(len(tokens) for tokens in corpus.blocks.values()) == 8


def test_white_space_alone_is_too_little(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    assert "has 0 tokens for calibration" in refused(
        request(tmp_path / "blank.txt"), byte_tokenizer, tmp_path
    )


def test_the_libraries_say_nothing(
    text: Path,
    tmp_path: Path,
    byte_tokenizer: PreTrainedTokenizerFast,
    said_by_libraries: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    read_corpus(request(text), byte_tokenizer, tmp_path / "cache")
    (tmp_path / "a.parquet").write_text("no table, but long enough to look at")
    refused(request(tmp_path / "a.parquet"), byte_tokenizer, tmp_path / "cache")
    printed = capfd.readouterr()
    assert printed.out + printed.err + said_by_libraries.text == ""


def test_real_stories_fill_every_split(real: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real / "stories260K")
    wanted = request(
        real / "tinystories.txt",
        block=256,
        calibration_blocks=32,
        distillation_blocks=10**6,
        validation_blocks=32,
    )
    corpus = read_corpus(wanted, tokenizer, tmp_path)
    assert len(corpus.calibration) == len(corpus.validation) == 32
    assert len(corpus.distillation) > 1000
    assert 1.7 < corpus.validation_bytes / corpus.validation.numel() < 2.3


def test_mixed_blocks_are_the_same_ones_and_neighbours_are_apart(
    text: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = read_corpus(request(text), byte_tokenizer, tmp_path)
    mixed = corpus.mixed()
    assert sorted(mixed.distillation.tolist()) == sorted(corpus.distillation.tolist())
    assert torch.equal(mixed.distillation, corpus.mixed().distillation)
    places = [corpus.distillation.tolist().index(block) for block in mixed.distillation.tolist()]
    beside = sum(abs(one - other) == 1 for one, other in itertools.pairwise(places))
    assert beside < len(places) / 5
    assert torch.equal(mixed.validation, corpus.validation)
