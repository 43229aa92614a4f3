"""The error for bad input: it states the rule, what was given instead, and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that the program refuses; the command line prints the message without a traceback.

    Args:
        rule: what has to hold, as a clause without a full stop.
        values: what was given or found instead.
        remedy: what the user can do about it.
    """

    def __init__(self, rule: str, values: str, remedy: str) -> None:
        super().__init__(f"{rule}; {values}. {remedy}.")
        self.rule, self.values, self.remedy = rule, values, remedy
