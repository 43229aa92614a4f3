"""Other libraries' errors within our messages."""

from __future__ import annotations

_MOST_CHARACTERS = 300


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters, without the full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
