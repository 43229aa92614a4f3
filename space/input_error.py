"""The one error that a user may see: what the rule is, what was given, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be worked with.

    Args:
        rule: what has to hold, as a clause without a full stop.
        values: what was given or found instead.
        remedy: what the user can do about it.
    """

    def __init__(self, rule: str, values: str, remedy: str) -> None:
        super().__init__(f"{rule}; {values}. {remedy}.")
        self.rule, self.values, self.remedy = rule, values, remedy
