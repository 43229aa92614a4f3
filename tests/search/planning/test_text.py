"""A plan looks at the beginning of every text, and refuses what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.planning.text import text_rows
from search.settings.config import RunConfig
from space.input_error import InputError
from tests.evaluators.corpus.chats import CHATML, chat_tokenizer
from tests.search.synthetic import run_config


def config_of(teacher: Path, *data: str) -> RunConfig:
    return run_config(teacher=str(teacher), data=data)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A folder with a tokenizer alone."""
    folder = tmp_path / "teacher"
    chat_tokenizer(CHATML).save_pretrained(folder)
    return folder


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_short_text_is_counted_exactly(teacher: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "de"}])
    assert text_rows(config_of(teacher, str(text))) == [("data", f"{text}, 7 tokens in 2 documents")]


def test_a_long_one_by_its_beginning(teacher: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "a.jsonl", [{"text": f"{number:0999}"} for number in range(4000)])
    ((_, words),) = text_rows(config_of(teacher, str(text)))
    # 4000 rows of 1014 bytes, of which 999 are text: 4060 documents, in two digits.
    assert words == f"{text}, about 4,100,000 tokens in 4,100 documents, as its beginning has them"


def test_without_a_tokenizer_documents_are_counted(tmp_path: Path) -> None:
    text = written(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "de"}])
    assert text_rows(config_of(tmp_path, str(text))) == [("data", f"{text}, 2 documents")]


def test_of_a_mixture_each_has_its_share_and_a_conversation_is_shown(teacher: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "a.jsonl", [{"text": "abc"}])
    chats = written(tmp_path / "b.jsonl", [{"prompt": "Far?", "completion": "No."}])
    config = config_of(teacher, f"{text}=3", f"{chats}=1")
    shown = "<|im_start|>user\nFar?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>"
    (_, words), conversation = text_rows(config, verbose=True)
    assert words.splitlines() == [
        f"75% {text}, 4 tokens in 1 documents",
        f"25% {chats}, 29 tokens in 1 conversations",
    ]
    assert conversation == ("conversation", shown)
    assert len(text_rows(config)) == 1


def test_the_defaults_are_not_looked_at(tmp_path: Path) -> None:
    default = config_of(tmp_path, "HuggingFaceFW/fineweb-edu")
    assert text_rows(default) == [("data", "HuggingFaceFW/fineweb-edu, read from the hub")]


def test_what_cannot_be_read_is_refused(teacher: Path, tmp_path: Path) -> None:
    labels = written(tmp_path / "a.jsonl", [{"sentence": "good", "label": 1}])
    with pytest.raises(InputError, match="has the columns sentence, label"):
        text_rows(config_of(teacher, str(labels)))
    with pytest.raises(InputError, match="nowhere"):
        text_rows(config_of(teacher, str(tmp_path / "nowhere.jsonl")))
