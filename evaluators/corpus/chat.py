"""Conversations as text: written by the tokenizer's chat template, with the answers marked.

Without a template a conversation is written plainly: each message under the name of who speaks, with a blank
line between them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from evaluators.corpus.conversations import Conversation, Message
from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

logger = logging.getLogger(__name__)
ASSISTANT = "assistant"
#: In a template, what marks the text that the assistant writes.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Stands for a message's content while its place is looked for; no text has it.
_MARK = "\ue000\ue001\ue002"
#: Of so many conversations at the beginning, at least one has to suit the template.
_FIRST = 64


class Span(NamedTuple):
    """Characters of a text, the end not included."""

    start: int
    end: int


class TemplateError(ValueError):
    """A chat template does not take a conversation, or its answers cannot be found in what it writes."""


@dataclass
class ChatWriter:
    """Writes conversations as the teacher reads them.

    Attributes:
        tokenizer: the teacher's.
        written: conversations so far.
        refused: those that the template did not take, which are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    written: int = 0
    refused: int = 0
    _reason: str = field(default="", repr=False)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    def text(self, conversation: Conversation) -> str:
        """Return a conversation as text.

        Raises:
            TemplateError: the template does not take it.
        """
        return self._write(conversation, conversation.messages)

    def answers(self, conversation: Conversation) -> list[Span]:
        """Return where the assistant's words stand in ``text``, with the token that ends each turn.

        They are where the template says (its generation blocks), or else found by writing the conversation
        up to each answer.

        Raises:
            TemplateError: the template does not take the conversation, or an answer cannot be found.
        """
        whole = self.text(conversation)
        if self.has_template and _GENERATION.search(self._template):
            return self._generated(conversation)
        return list(self._found(conversation, whole))

    def read(self, conversation: Conversation, with_answers: bool = False) -> tuple[str, list[Span]] | None:
        """Return ``text`` and, if wanted, ``answers``; None, and a count, if that is impossible.

        Raises:
            InputError: it was impossible with all of the first conversations.
        """
        try:
            found = self.text(conversation), self.answers(conversation) if with_answers else []
        except TemplateError as error:
            self.refused += 1
            self._reason = str(error)
            if self.written == 0 and self.refused >= _FIRST:
                raise self._refusal() from None
            return None
        self.written += 1
        return found

    def close(self, id: str) -> None:
        """Say how many conversations of a data set were left out.

        Raises:
            InputError: all were.
        """
        if self.refused and not self.written:
            raise self._refusal()
        if self.refused:
            everything = self.refused + self.written
            logger.warning(
                "left out %d of %d conversations of %s: the teacher's chat template says: %s",
                *(self.refused, everything, id, self._reason),
            )

    def _refusal(self) -> InputError:
        return InputError(
            "the teacher's chat template has to take the conversations",
            f"of {self.refused} it takes none: {self._reason}",
            "Mend their roles, or name a text",
        )

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else str(template)

    def _write(self, conversation: Conversation, messages: Sequence[Message], **more: Any) -> str:
        if not self.has_template:
            return plain_text(messages)
        arguments: Mapping[str, Any] = {**conversation.switches, **more}
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=list(conversation.tools) or None, tokenize=False, **arguments
            )
        except Exception as error:  # anything that a template's code raises
            raise TemplateError(short_message(error)) from error
        assert isinstance(text, str)
        return text

    def _generated(self, conversation: Conversation) -> list[Span]:
        marked = self.tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
            **conversation.switches,
        )
        assert isinstance(marked, Mapping)
        spans: list[Span] = []
        for learnt, (start, end) in zip(marked["assistant_masks"], marked["offset_mapping"], strict=True):
            if learnt and spans and start <= spans[-1].end:  # tokens may share a character
                spans[-1] = Span(spans[-1].start, end)
            elif learnt:
                spans.append(Span(start, end))
        return spans

    def _found(self, conversation: Conversation, whole: str) -> Iterator[Span]:
        messages = conversation.messages
        for place, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            span = self._between(conversation, place, whole) if self.has_template else None
            yield span or self._replaced(conversation, place, whole)

    def _between(self, conversation: Conversation, place: int, whole: str) -> Span | None:
        """Return the text between a conversation up to an answer and one with it, if both begin the whole."""
        messages = conversation.messages
        try:
            before = self._write(conversation, messages[:place], add_generation_prompt=True)
            after = self._write(conversation, messages[: place + 1])
        except TemplateError:  # of a part of a conversation
            return None
        if len(before) < len(after) and whole.startswith(after) and after.startswith(before):
            return Span(len(before), _without_break(whole, len(after)))
        return None

    def _replaced(self, conversation: Conversation, place: int, whole: str) -> Span:
        """Return the text that changes with the content of an answer, and the token after it."""
        messages = list(conversation.messages)
        messages[place] = {"role": ASSISTANT, "content": _MARK}
        other = self._write(conversation, messages)
        if other.count(_MARK) != 1:
            raise TemplateError(f"message {place + 1}, an answer, is not found in what it writes")
        start, end = _common(whole, other), _common(whole[::-1], other[::-1])
        start = min(start, other.index(_MARK))
        end = len(whole) - min(end, len(other) - other.index(_MARK) - len(_MARK))
        return Span(start, max(start, self._past_the_turn(whole, end)))

    def _past_the_turn(self, whole: str, end: int) -> int:
        special = sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)
        return next((end + len(token) for token in special if token and whole.startswith(token, end)), end)


def plain_text(messages: Sequence[Message]) -> str:
    """Return messages as text for a teacher without a chat template."""
    parts = [f"{message['role'].capitalize()}: {message['content'].strip()}" for message in messages]
    return "\n\n".join(parts) + "\n"


def _common(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def _without_break(whole: str, end: int) -> int:
    """Leave out the line break after a turn: it begins the next one."""
    return end - 1 if whole[end - 1 : end] == "\n" else end
