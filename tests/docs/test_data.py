"""Every row of the table of formats is read, and written as the chat template writes the same turns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evaluators.corpus.chat import ChatWriter
from evaluators.corpus.conversations import Conversation
from evaluators.corpus.documents import contents_of_rows
from tests.evaluators.corpus.chats import CHATML, chat_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
ROWS = re.findall(r"^\| (`.+) \| `(\{.+\})` \|$", PAGE.read_text().split("## Files")[0], re.MULTILINE)
TURNS = [{"role": "user", "content": "Is it far?"}, {"role": "assistant", "content": "No."}]


def test_the_table_has_every_format() -> None:
    assert len(ROWS) == 7


@pytest.mark.parametrize(("columns", "example"), ROWS)
def test_its_example_is_read(columns: str, example: str) -> None:
    row = json.loads(example)
    assert set(re.findall(r"`(\w+)`", columns)) & set(row)
    (found,) = contents_of_rows([row], "the table")
    if "text" in row:
        assert found == row["text"]
        return
    assert isinstance(found, Conversation)
    tokenizer = chat_tokenizer(CHATML)
    assert ChatWriter(tokenizer).text(found) == tokenizer.apply_chat_template(TURNS, tokenize=False)
