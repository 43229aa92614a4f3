from __future__ import annotations

import pytest

from space.input_error import InputError


def test_the_message_is_rule_values_and_remedy() -> None:
    error = InputError("A budget has to be positive", "-1 was given", "Try 1M")
    assert str(error) == "A budget has to be positive; -1 was given. Try 1M."
    assert (error.rule, error.values, error.remedy) == (
        "A budget has to be positive",
        "-1 was given",
        "Try 1M",
    )


def test_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^rule; values\. remedy\.$"):
        raise InputError("rule", "values", "remedy")
