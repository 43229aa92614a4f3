"""Other libraries' words within our messages."""

from __future__ import annotations

_MOST_CHARACTERS = 300


def one_line(said: BaseException | str) -> str:
    """What an error or warning says, in one line of at most 300 characters, without the full stop."""
    text = " ".join(str(said).split()).rstrip(".") or type(said).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
