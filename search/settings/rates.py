"""``--rate``: the peak learning rates of a run, what finding one costs, and whether that pays."""

from __future__ import annotations

import math

from evaluators.distillation.rate_finding import EXPECTED_TRAININGS, STEPS
from search.settings.config import RunConfig
from space.input_error import InputError

#: Values of ``--rate``: found by a range test if that pays, and by the rule for a student's size.
FOUND, RULE = "auto", "rule"
#: Tokens of the range tests may be this share of all training tokens of the run.
_SHARE = 1 / 20


def rate_of(text: str) -> str:
    """Return the value of ``--rate`` as the configuration has it.

    Raises:
        InputError: it is neither ``auto`` nor ``rule`` nor a learning rate.
    """
    if text in (FOUND, RULE):
        return text
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:
        raise InputError(
            "--rate takes auto, rule, or a learning rate between 0 and 1",
            f"{text!r} was given",
            "Leave --rate out, or write --rate 3e-4",
        )
    return repr(rate)


def given_rate(config: RunConfig) -> float | None:
    """Return the peak rate of every training, if the user named it."""
    return None if config.rate in (FOUND, RULE) else float(config.rate)


def tokens_each(config: RunConfig) -> int:
    """Return the tokens of each training of a range test: whole steps, at most those of rung 1.

    A longer one would not tell whether a training as short as rung 1 does harm at that rate.
    """
    step = config.batch_blocks * config.block
    return step * max(1, min(STEPS, round(config.trial_tokens / step)))


def finding_tokens(config: RunConfig, bases: int, trained: int) -> int:
    """Return the expected tokens of the range tests; 0 if there are none.

    Args:
        config: the run.
        bases: bases of hidden that are tried, each of which has a test.
        trained: tokens of all other trainings.
    """
    tokens = bases * EXPECTED_TRAININGS * tokens_each(config)
    return tokens if config.rate == FOUND and tokens <= _SHARE * trained else 0


def rate_in_words(config: RunConfig, bases: int, trained: int) -> str:
    """Say how the peak learning rate is set, for the plan and the terminal; arguments as above."""
    if (rate := given_rate(config)) is not None:
        return f"{rate:g} at its peak, in every training of a student"
    each = "" if bases == 1 else ", in each of two bases"
    if finding_tokens(config, bases, trained):
        test = f"trainings of {tokens_each(config):,} tokens each{each}"
        return f"its peak is found by about {EXPECTED_TRAININGS} {test}"
    if config.rate == RULE:
        return "its peak is the rule's for the student's size"
    cost = bases * EXPECTED_TRAININGS * tokens_each(config)
    return (
        f"its peak is the rule's for the student's size: to find it would take {cost:,} tokens{each}, more "
        f"than a twentieth of the {trained:,} of all trainings"
    )
