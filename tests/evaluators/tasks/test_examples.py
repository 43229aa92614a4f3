"""Files of examples: what is read, what is refused, and subsets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.tasks.examples import Example, joined, read_examples, subset
from space.input_error import InputError


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_pairs_and_questions_are_read(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "task.jsonl",
        {"good": "Cats sleep.", "bad": "Cats sleeps.", "field": "syntax", "task": "agreement"},
        "",
        {"context": "Two and two is", "choices": ["three", "four", "five"], "answer": 1},
        {"context": "Q: who?\n", "good": "I", "bad": "me"},
    )
    pair, question, both = read_examples(file)
    assert pair == Example((("", " Cats sleep."), ("", " Cats sleeps.")), 0, "syntax", "agreement")
    assert [text for _, text in question.options] == [" three", " four", " five"]
    assert (question.options[0][0], question.answer, question.field) == ("Two and two is", 1, "")
    assert both.options == (("Q: who?\n", "I"), ("Q: who?\n", "me"))


def test_only_a_new_line_ends_a_line(tmp_path: Path) -> None:
    good = "one\u2028two\x85three"
    file = tmp_path / "task.jsonl"
    file.write_text(json.dumps({"good": good, "bad": "b"}, ensure_ascii=False) + "\r\n", newline="")
    [example] = read_examples(file)
    assert example.options[0] == ("", f" {good}")


def test_a_mark_of_byte_order_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"good": "a", "bad": "b"}).encode())
    assert len(read_examples(file)) == 1


@pytest.mark.parametrize(
    ("context", "choice", "text"),
    [("", "a", " a"), ("Is", "a", " a"), ("Is ", "a", "a"), ("Is", " a", " a"), ("Is\n", "a", "a")],
)
def test_one_space_lies_between_context_and_choice(context: str, choice: str, text: str) -> None:
    assert joined(context, choice) == text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 of {file} is not JSON"),
        ([1], "line 2 of {file} is no object"),
        ({"text": "a"}, "line 2 of {file} has 'text', and no texts to choose from"),
        ({"good": "a"}, "line 2 of {file} has 'good', and no texts to choose from"),
        ({"good": "a", "bad": ""}, "and no texts to choose from"),
        ({"choices": ["a"], "answer": 0}, "has a single choice"),
        ({"choices": ["a", "b"], "answer": 2}, "has the answer 2, not a number from 0 to 1"),
        ({"choices": ["a", "b"], "answer": "b"}, "has the answer 'b', not a number"),
        ({"choices": ["a", "b"], "answer": True}, "has the answer True, not a number"),
        ({"choices": ["a", "b"]}, "has the answer None, not a number"),
        ({"context": 3, "good": "a", "bad": "b"}, "has a context that is no text"),
    ],
)
def test_what_is_no_example_is_refused_by_its_line(row: Any, message: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "task.jsonl", {"good": "a", "bad": "b"}, row)
    with pytest.raises(InputError) as error:
        read_examples(file)
    assert message.format(file=file) in str(error.value)
    assert 'Write {"good": …, "bad": …} or' in str(error.value)


def test_what_has_no_right_choice_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same, plain = {"good": "a", "bad": "a"}, {"good": "a", "bad": "b"}
    question = {"choices": ["a", "b", "b"], "answer": 0}
    wrong = {"choices": ["a", "b", "b"], "answer": 2}
    file = _write(tmp_path / "quiz.jsonl", plain, same, question, wrong)
    found = read_examples(file)
    assert [len(example.options) for example in found] == [2, 3], "two wrong choices may be the same"
    assert "quiz.jsonl: 2 of 4 examples are left out" in caplog.text
    assert "(line 2, 4)" in caplog.text
    with pytest.raises(InputError, match="one example at least"):
        read_examples(_write(tmp_path / "none.jsonl", same))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match="one example at least"):
        read_examples(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="it is not UTF-8"):
        read_examples(file)
    with pytest.raises(InputError, match="No such file"):
        read_examples(tmp_path / "gone.jsonl")


def _examples(kinds: dict[str, int]) -> list[Example]:
    return [
        Example((("", f"{kind} {number}"), ("", "no")), 0, kind)
        for kind, count in kinds.items()
        for number in range(count)
    ]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.data())
def test_a_subset_has_equal_shares_whatever_the_order(kinds: dict[str, int], data: Any) -> None:
    """Law: distinct examples, each kind's share right to within one, and the same set for any order."""
    examples = _examples(kinds)
    number = data.draw(st.integers(1, len(examples)))
    found = subset(examples, number)
    assert len({one.options for one in found}) == number
    counts = Counter(one.field for one in found)
    for kind, count in kinds.items():
        assert abs(counts[kind] - count * number / len(examples)) < 1
    shuffled = data.draw(st.permutations(examples))
    assert set(subset(shuffled, number)) == set(found)


def test_a_subset_is_not_larger_than_the_task() -> None:
    examples = _examples({"a": 3})
    assert subset(examples, 9) == examples
