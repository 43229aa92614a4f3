"""The study of mixtures, on a tiny teacher: each student is measured on both kinds of text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from space.axes.architecture import Axis
from studies.bench.results import Results
from studies.bench.setting import Setting
from studies.mixtures import __main__ as study
from studies.mixtures import work
from studies.mixtures.chats import chats_of_books, real_chats
from studies.mixtures.work import MIXTURES, SEEDS, Texts

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    path = tmp_path / "books.jsonl"
    sentence = "In the {} year the ship came back to the harbour with nothing but salt. "
    texts = ["".join(sentence.format(n * k) for n in range(1, 40)) for k in range(1, 60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "Short."]))
    return path


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.json"
    turns = [
        [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"{n} is a number."}]
        for n in range(60)
    ]
    path.write_text(json.dumps([{"id": str(n), "conversations": one} for n, one in enumerate(turns)]))
    return path


def test_real_turns_keep_their_order(chats: Path) -> None:
    assert real_chats(chats)[3] == [
        {"role": "user", "content": "What is 3?"},
        {"role": "assistant", "content": "3 is a number."},
    ]


def test_a_book_answers_with_what_follows(books: Path) -> None:
    asked = list(chats_of_books(books.read_text().splitlines()))
    assert len(asked) == 59, "the short one is left out"
    whole = " ".join(json.loads(books.read_text().splitlines()[0])["text"].split())
    question, answer = (turn["content"] for turn in asked[0])
    assert whole[:390] in question
    assert answer in whole[400:1000]
    assert answer.endswith(".")


def test_a_mixture_names_its_texts_and_shares(books: Path, chats: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = Texts(books, chats, folder)
    read, asked = folder / "books.jsonl", folder / "chats.jsonl"
    assert texts.mixture("books") == (str(read),)
    assert texts.mixture("both") == (f"{read}=0.3", f"{asked}=0.7")
    kept = [json.loads(line)["text"] for line in read.read_text().splitlines()]
    answers = [json.loads(line)["messages"][1]["content"] for line in asked.read_text().splitlines()[50:]]
    assert len(kept) == 30
    assert len(answers) == 29
    assert not any(answer in text for answer in answers for text in kept), "no held-out book is quoted"
    assert texts.prompts == [f"What is {n}?" for n in range(50, 60)]
    written = asked.read_text()
    assert "What is 49?" in written
    assert "What is 50?" not in written, "prompts are not learnt from"


@pytest.fixture
def setting(tiny_teacher: Path, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Setting:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file in tiny_teacher.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Setting("tiny", folder, "", 64, {Axis.HIDDEN: 12, Axis.MLP: 16}, 1, "no")


@pytest.mark.slow
def test_every_mixture_is_measured_on_both_texts(
    setting: Setting, books: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "results.jsonl", ("mixture", "steps", "seed"))
    monkeypatch.setattr(work, "RESULTS", results)
    monkeypatch.setattr(study, "RESULTS", results)
    monkeypatch.setattr(work, "_VALIDATION_TOKENS", 256)
    monkeypatch.setattr("studies.bench.bench._CALIBRATION_BLOCKS", 2)
    monkeypatch.setattr("studies.bench.bench._VALIDATION_TOKENS", 256)
    monkeypatch.setattr("studies.bench.bench.STEP_TOKENS", 128)
    monkeypatch.setattr(work, "_ANSWER_TOKENS", 4)
    work.work(setting, books, chats, 1, 1)
    rows = results.rows()
    assert {(row["mixture"], row["seed"]) for row in rows} == {(m, s) for m in MIXTURES for s in SEEDS}
    assert all(math.isfinite(row["books"]) and math.isfinite(row["chats"]) for row in rows)
    assert len({(row["teacher_books"], row["teacher_chats"]) for row in rows}) == 1, "the same held-out text"
    assert all(row["ended"] <= row["asked"] <= 10 for row in rows)
    for row in rows:
        own = {"books": row["books"], "chats": row["chats"]}.get(row["mixture"])
        assert own is None or row["after"] == pytest.approx(own), "a text alone is its own held-out text"
    table = study.tables()
    assert table.count("\n| ") == 2 + len(MIXTURES)
    work.work(setting, books, chats, 1, 1)
    assert results.rows() == rows, "nothing is repeated"
