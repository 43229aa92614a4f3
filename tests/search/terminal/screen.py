"""A terminal of one width and no height: what a person would see of what a program printed."""

from __future__ import annotations

import re

_CODE = re.compile(r"\x1b\[(?P<numbers>[\d;?]*)(?P<letter>[A-Za-z])|(?P<plain>[^\x1b])", re.DOTALL)


class Screen:
    """Obeys what a live display sends: carriage returns, line erasure, moves of the cursor, colours.

    Args:
        text: everything that was printed.
        width: in columns.
    """

    def __init__(self, text: str, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0
        for code in _CODE.finditer(text):
            if code["plain"] is not None:
                self._print(code["plain"])
            else:
                self._obey(code["letter"], code["numbers"])

    @property
    def text(self) -> list[str]:
        """The lines without what is blank at their ends."""
        return [line.rstrip() for line in self.lines]

    def _print(self, character: str) -> None:
        if character == "\n":
            self._go_to(self.row + 1)
            self.column = 0
        elif character == "\r":
            self.column = 0
        else:
            if self.column == self.width:
                self._print("\n")
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _obey(self, letter: str, numbers: str) -> None:
        if letter == "A":
            self._go_to(self.row - int(numbers or 1))
        elif letter == "K":
            assert numbers == "2", f"how to erase {numbers!r} is not known here"
            self.lines[self.row] = ""
        else:
            assert letter in "mhl", f"the code {letter} is not known here"

    def _go_to(self, row: int) -> None:
        self.row = row
        self.lines += [""] * (row + 1 - len(self.lines))
