"""A smaller tokenizer writes every text, and splits as before what has none of the tokens that went."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from space.input_error import InputError
from space.vocabulary.smaller_tokenizer import described, smaller, smaller_tokenizer
from space.vocabulary.token_table import TokenTable
from tests.real_models import real_folder, smollm2_folder

DEMO = Path(__file__).parents[3] / "studies" / "demo" / "teacher"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "ran",
    "after",
    "the",
    "cheerful",
    "cats",
    "of",
    "chess,",
    "naïve",
    "chattering",
    "ones",
]
SENTENCES = [" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(200)]


def unigram() -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    found.train_from_iterator(SENTENCES, trainer)
    return found


def word_piece() -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.decoder = decoders.WordPiece()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    found.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=110, special_tokens=names))
    found.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return found


def characters() -> Tokenizer:
    """BPE over characters, with what follows within a word marked by a prefix."""
    found = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    found.decoder = decoders.WordPiece()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], continuing_subword_prefix="##")
    found.train_from_iterator(SENTENCES, trainer)
    return found


MADE = {"unigram": unigram, "word_piece": word_piece, "characters": characters}
SMOLLM2 = pytest.param("SmolLM2", marks=pytest.mark.slow)
NAMES = ["demo", "stories260K", SMOLLM2, *MADE]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    if name in MADE:
        return PreTrainedTokenizerFast(tokenizer_object=MADE[name]())
    folders = {"demo": lambda: DEMO, "SmolLM2": smollm2_folder}
    folder = folders.get(name, lambda: real_folder() / name)()
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return found


@cache
def halved(name: str, seed: int = 0) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """A tokenizer without about half of the tokens that may go, and the numbers of those that stay."""
    tokenizer = tokenizer_of(name)
    table = TokenTable.of(described(tokenizer))
    draw = random.Random(seed)
    order = table.order([draw.random() for _ in range(max(table.names) + 1)])
    kept = tuple(sorted(order[: (len(table.always) + len(order)) // 2]))
    return smaller_tokenizer(tokenizer, kept), kept


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_gone_and_the_others_keep_their_names(name: str) -> None:
    tokenizer, (after, kept) = tokenizer_of(name), halved(name)
    assert len(after) == len(kept) < len(tokenizer)
    assert after.convert_ids_to_tokens(list(range(len(kept)))) == tokenizer.convert_ids_to_tokens(list(kept))
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(after, role) == getattr(tokenizer, role)
    assert after.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_to_a_text_is_the_same(name: str) -> None:
    tokenizer, (after, kept) = tokenizer_of(name), halved(name)
    before = tokenizer.encode("", add_special_tokens=True)
    assert [kept[token] for token in after.encode("", add_special_tokens=True)] == before


@pytest.mark.parametrize("name", ["demo", "stories260K", SMOLLM2])
@given(text=st.text())
def test_every_text_is_written_and_read_again(name: str, text: str) -> None:
    tokenizer, (after, _) = tokenizer_of(name), halved(name)
    whole = tokenizer.decode(encoded(tokenizer, text))
    assert after.decode(encoded(after, text)) == whole
    if name == "demo":  # of its bytes, SmolLM2 lacks some that are rare
        assert whole == text, "bytes are written as they are"


@pytest.mark.parametrize("name", list(MADE))
@given(words=st.lists(st.sampled_from(WORDS)))
def test_a_text_of_known_characters_is_never_unknown(name: str, words: list[str]) -> None:
    tokenizer, (after, _) = tokenizer_of(name), halved(name)
    found = encoded(after, " ".join(words))
    assert after.unk_token_id not in found
    assert after.decode(found) == tokenizer.decode(encoded(tokenizer, " ".join(words)))


def texts(name: str) -> st.SearchStrategy[str]:
    """Texts that often have nothing but tokens that stay."""
    tokenizer, (_, kept) = tokenizer_of(name), halved(name)
    pieces = [str(tokenizer.decode([token])) for token in kept]
    return st.lists(st.sampled_from([*pieces, *WORDS, " "]), max_size=8).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_text_without_the_tokens_that_went_is_split_as_before(name: str, data: st.DataObject) -> None:
    tokenizer, (after, kept) = tokenizer_of(name), halved(name)
    text = data.draw(texts(name))
    before = encoded(tokenizer, text)
    if set(before) <= set(kept):
        assert [kept[token] for token in encoded(after, text)] == before


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_every_beginning_of_the_order_has_the_parts_of_its_tokens(name: str, seed: int, share: float) -> None:
    table = TokenTable.of(described(tokenizer_of(name)))
    draw = random.Random(seed)
    scores = [draw.random() for _ in range(max(table.names) + 1)]
    order = table.order(scores)
    assert sorted(order) == sorted(table.names)
    beginning = set(order[: len(table.always) + round(share * (len(order) - len(table.always)))])
    assert table.always <= beginning
    assert all(set(table.parts.get(token, ())) <= beginning for token in beginning)
    free = [token for token in order if token not in table.always and token not in table.parts]
    pieces = [token for token in free if not any(token in parts for parts in table.parts.values())]
    assert [scores[token] for token in pieces] == sorted((scores[token] for token in pieces), reverse=True)


def test_tokens_that_a_config_names_stay() -> None:
    table = TokenTable.of(described(tokenizer_of("demo")))
    last = max(table.names)
    order = table.order([0.0] * (last + 1), stay=[last, 10_000])
    assert last in order[: len(table.always) + 20]
    assert 10_000 not in order


def test_tokens_without_a_row_are_gone() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens(["<extra>"])
    before = described(tokenizer)
    order = TokenTable.of(before).order([0.0] * 1024)
    assert sorted(order) == list(range(1024))
    after = smaller(before, sorted(order[:512]))
    assert [token["content"] for token in after["added_tokens"]] == ["<|endoftext|>"]


def test_merges_that_make_a_token_in_several_ways_keep_the_first() -> None:
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5},
        "merges": [["a", "b"], "b c", ["ab", "c"], ["a", "bc"]],
    }
    table = TokenTable.of({"model": model})
    assert table.parts == {3: (0, 1), 4: (1, 2), 5: (3, 2)}
    assert table.order([0, 0, 0, 1, 3, 2]) == [0, 1, 2, 4, 3, 5]
    kept = smaller({"model": model, "added_tokens": []}, [0, 1, 2, 3, 5])
    assert kept["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert kept["model"]["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}


def test_a_vocabulary_of_whole_words_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(InputError, match="of the kind WordLevel"):
        TokenTable.of(described(words))
