"""Mixtures hold their shares in every stretch of blocks, and keep the splits of every text apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.blocks import Corpus, Split, split_of
from evaluators.corpus.conversations import Conversation
from evaluators.corpus.corpus import CorpusRequest, read_corpus
from evaluators.corpus.documents import Document
from evaluators.corpus.layout import Layout
from evaluators.corpus.mixture import (
    DataSource,
    apportion,
    losses_by_source,
    mixture_of,
    parse_data,
    read_mixture,
    turns,
)
from evaluators.corpus.splits import DocumentTokenizer, build_splits
from space.input_error import InputError
from tests.evaluators.corpus.chats import CHATML, chat_tokenizer

shares_of = st.lists(st.floats(0.02, 1), min_size=2, max_size=6).map(
    lambda parts: [part / sum(parts) for part in parts]
)


def refused(*named: str) -> str:
    with pytest.raises(InputError) as refusal:
        parse_data(named)
    return str(refusal.value)


def test_shares_are_of_one(tmp_path: Path) -> None:
    assert parse_data(["a.jsonl"]) == (DataSource("a.jsonl", 1.0),)
    assert parse_data(["a=3", "b/c.txt=1"]) == (DataSource("a", 0.75), DataSource("b/c.txt", 0.25))
    assert parse_data(["org/set@main:part=0.5", "b=.5"])[0] == DataSource("org/set@main:part", 0.5)
    odd = tmp_path / "x=1"
    odd.write_text("a")
    assert parse_data([str(odd)]) == (DataSource(str(odd), 1.0),)


def test_shares_that_cannot_be_are_refused() -> None:
    assert "b has none. Write b=0.5" in refused("a=0.5", "b")
    assert "a has 0" in refused("a=0", "b=1")
    assert "a has inf" in refused("a=inf", "b=1")
    assert "a is named twice" in refused("a=1", "a=2")


@given(shares_of, st.integers(1, 400))
def test_any_first_blocks_have_the_shares_to_within_a_block(shares: list[float], blocks: int) -> None:
    counts = [0] * len(shares)
    for done, source in enumerate(turns(blocks, shares), start=1):
        counts[source] += 1
        assert all(abs(count - share * done) < 1 + 1e-9 for count, share in zip(counts, shares, strict=True))


@given(shares_of, st.integers(1, 200))
def test_every_source_has_some_of_the_blocks(shares: list[float], blocks: int) -> None:
    counts = apportion(blocks, shares)
    assert min(counts) >= 1
    assert sum(counts) >= blocks
    if all(share * blocks >= 1 for share in shares):
        assert sum(counts) == blocks
        assert all(abs(count - share * blocks) < 1 for count, share in zip(counts, shares, strict=True))


def corpus_of(id: str, first: int, blocks: int) -> Corpus:
    def rows(start: int, number: int) -> torch.Tensor:
        return torch.arange(start, start + number, dtype=torch.int32)[:, None].expand(-1, 4).contiguous()

    return Corpus(id, rows(first, 2), rows(first, blocks), rows(first + 500, 3), 12, "")


def test_a_short_text_is_read_again_until_the_longest_was_read_once() -> None:
    mixed = mixture_of([corpus_of("a", 0, 30), corpus_of("b", 1000, 5)], [0.5, 0.5], 100)
    read = mixed.distillation[:, 0].tolist()
    assert sorted(row for row in read if row < 1000) == list(range(30))
    again = [row for row in read if row >= 1000]
    assert len(again) == 30
    assert all(again.count(row) == 6 for row in range(1000, 1005))
    assert [source.times for source in mixed.sources] == [1.0, 6.0]
    assert mixed.id == "50% a + 50% b"
    assert mixed.validation[:, 0].tolist() == [500, 501, 502, 1500, 1501, 1502]
    assert mixed.validation_bytes == 24


def test_losses_are_stated_for_each_source() -> None:
    mixed = mixture_of([corpus_of("a", 0, 30), corpus_of("b", 1000, 30)], [0.5, 0.5], 10)
    assert losses_by_source(mixed, lambda blocks, _: float(blocks[:, 0].float().mean())) == [501, 1501]


def test_only_what_the_shares_need_is_read(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} words" * 9}) + "\n" for n in range(400))
    )
    rows = (
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!" * 20}]}
        for n in range(400)
    )
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = parse_data([f"{tmp_path / 'texts.jsonl'}=0.7", f"{tmp_path / 'chats.jsonl'}=0.3"])
    request = CorpusRequest(
        data="",
        block=32,
        calibration_blocks=10,
        distillation_blocks=100,
        validation_blocks=10,
        answers_alone=True,
    )
    corpus = read_mixture(sources, request, chat_tokenizer(CHATML), tmp_path / "cache")
    assert [source.distillation_blocks for source in corpus.sources] == [70, 30]
    assert [source.validation_blocks for source in corpus.sources] == [7, 3]
    assert {split: len(blocks) for split, blocks in corpus.blocks.items()} == {
        Split.CALIBRATION: 10,
        Split.DISTILLATION: 100,
        Split.VALIDATION: 10,
    }
    assert corpus.validation_learnt is not None
    assert corpus.validation_learnt[:7].all()
    assert 0 < corpus.validation_learnt[7:].float().mean() < 1
    again = read_mixture(sources, request, chat_tokenizer(CHATML), tmp_path / "cache")
    assert again.fingerprint == corpus.fingerprint
    assert torch.equal(again.distillation_learnt, corpus.distillation_learnt)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 60), max_size=120), st.sampled_from([None, 3]))
def test_no_document_of_one_split_shares_a_block_with_another(
    numbers: list[int], beginning: int | None
) -> None:
    """Each document is a letter of its own, so a block tells whose text it has."""
    documents = [Document.unnamed(chr(0x4E00 + number) * 5) for number in numbers]
    tokenize = DocumentTokenizer(chat_tokenizer(None), Layout(after=0, beginning=beginning))
    filled = build_splits(documents, tokenize, 9, dict.fromkeys(Split, 20))
    for split in Split:
        own = "".join(one.text for one in documents if split_of(one.name) is split)
        for row in filled[split].cut().tolist():
            assert len(row) == 9
            assert beginning is None or row[0] == beginning
            text = tokenize.tokenizer.decode([token for token in row if token > 4])
            assert all(letter in own for letter in str(text) if letter != "\ufffd")


def test_conversations_without_an_answer_teach_nothing(tmp_path: Path) -> None:
    rows = ({"messages": [{"role": "user", "content": f"{number}?" * 9}]} for number in range(300))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = CorpusRequest(
        data=str(tmp_path / "a.jsonl"),
        block=16,
        calibration_blocks=4,
        distillation_blocks=4,
        validation_blocks=4,
        answers_alone=True,
    )
    with pytest.raises(InputError, match=r"the distillation set of .* has none in 4 blocks"):
        read_corpus(request, chat_tokenizer(CHATML), tmp_path / "cache")


def test_what_is_learnt_is_the_next_token() -> None:
    """Of the stream, a token counts where the one after it is the assistant's."""
    row = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    tokenizer = chat_tokenizer(CHATML)
    document = Document.unnamed(Conversation(tuple(row)))
    (found,) = DocumentTokenizer(tokenizer, answers_alone=True)([document])
    assert found.learnt is not None
    learnt = [tokenizer.decode([token]) for token, one in zip(found.tokens, found.learnt, strict=True) if one]
    assert learnt == ["c", "d", "<|im_end|>"]
    filled = build_splits(
        [document],
        DocumentTokenizer(tokenizer, answers_alone=True),
        len(found.tokens),
        dict.fromkeys(Split, 1),
    )
    mask = filled[split_of(document.name)].cut_learnt()
    assert mask is not None
    assert mask[0].tolist() == [*found.learnt[1:].tolist(), False]
