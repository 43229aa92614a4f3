"""Rules for the values of flags, checked before any work; each error names the rule and the remedy."""

from __future__ import annotations

import math
import os

from evaluators.corpus.mixture import parse_data
from evaluators.distillation.losses import Loss
from search.settings.config import NESTED
from search.settings.flags import Flags
from search.settings.objectives import read_bounds
from search.settings.rates import rate_of
from search.terminal.command import is_multi_process
from space.counting.budget import BudgetText, Measure
from space.enumeration.hand_made import parse_architecture
from space.enumeration.limits import read_limits
from space.input_error import InputError

#: Forms of the teacher's targets that store the probabilities of only a few tokens at each position.
_SPARSE = ("sampled", "top-k")


def check_flags(flags: Flags) -> None:
    """Check the values of all flags.

    Raises:
        InputError: for the first rule that is broken.
    """
    if not flags.budget:
        raise InputError(
            "A run needs a budget", "--budget was not given", "Add for example --budget 1M or --budget 60%"
        )
    for text in budgets_named(flags):
        BudgetText.parse(text, Measure(flags.budget_of))
    read_limits(flags.keep, flags.sizes)
    read_bounds(flags.max)
    for text in flags.try_:
        parse_architecture(text)
    if len(budgets_named(flags)) > 1:
        _check_family(flags)
    if not 0 < flags.tolerance < 0.5:
        raise InputError(
            "The tolerance has to lie between 0 and 0.5",
            f"{flags.tolerance} was given",
            "Try --tolerance 0.02",
        )
    for name in ("trials", "promote", "rounds", "calibration_samples"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} has to be at least 1", f"{value} was given", f"Leave {flag} out")
    if not 0 <= flags.seed < 2**32:
        raise InputError(
            "--seed has to be a whole number from 0 to 4294967295", f"{flags.seed} was given", "Try --seed 0"
        )
    rungs = [parse_count(tokens, "--rung-tokens") for tokens in flags.rung_tokens]
    if rungs != sorted(set(rungs)):
        raise InputError(
            "Each rung has to have more tokens than the one before",
            f"{' '.join(flags.rung_tokens)} was given",
            "Put --rung-tokens in ascending order",
        )
    check_search_budget(flags)
    check_nested(flags)
    if flags.retrain_tokens is not None:
        parse_count(flags.retrain_tokens, "--retrain-tokens")
    if flags.correct_teacher is not None:
        parse_count(flags.correct_teacher, "--correct-teacher")
    if flags.teacher_tokens is not None:
        parse_count(flags.teacher_tokens, "--teacher-tokens")
    check_text(flags)
    if flags.device_memory is not None:
        parse_memory(flags.device_memory)
    check_distillation(flags)
    if flags.verbose and flags.quiet:
        raise InputError("-v and -q exclude each other", "both were given", "Leave one out")


def _check_family(flags: Flags) -> None:
    """Refuse what goes with one budget alone."""
    if flags.try_:
        raise InputError(
            "An architecture by hand belongs to one budget",
            f"--try {' '.join(flags.try_)} was given with --budget {flags.budget}",
            "Add --try to the command of one budget",
        )
    if flags.keep_towers:
        raise InputError(
            "Other parts of a model belong to its text half as it was published",
            f"--keep-towers was given with --budget {flags.budget}: its second teacher is the first student",
            "Give one budget, or leave --keep-towers out",
        )


def check_nested(flags: Flags) -> None:
    """Refuse what does not go with a nested search.

    Raises:
        InputError: a flag that belongs to the other kind of search, or several processes for one training.
    """
    if flags.search != NESTED:
        return
    rule = "A nested search trains all candidates in shared weights"
    if flags.rung_tokens:
        raise InputError(
            rule, "--rung-tokens gives each its own training", "Leave it out, or take --search rungs"
        )
    if flags.schedule == "wsd":
        raise InputError(
            rule,
            "--schedule wsd lets each training of a candidate go on from its last",
            "Leave --schedule out, or take --search rungs",
        )
    if set(flags.states) - {"auto", "none"}:
        raise InputError(
            rule, f"--states {' '.join(flags.states)} compares states of one width", "Leave --states out"
        )
    if is_multi_process():
        raise InputError(
            rule,
            f"{os.environ['WORLD_SIZE']} processes were started to train each student together",
            "Start one process for each worker, or take --search rungs",
        )


def check_search_budget(flags: Flags) -> None:
    """Check ``--search-tokens`` and ``--hours``.

    Raises:
        InputError: a value is not allowed.
    """
    if flags.search_tokens is not None:
        parse_count(flags.search_tokens, "--search-tokens")
    if flags.hours is not None and not 0 < flags.hours < math.inf:
        raise InputError("--hours has to be a positive number", f"{flags.hours} was given", "Try --hours 0.5")


def check_text(flags: Flags) -> None:
    """Check the texts and their shares, and the lengths of blocks and batches.

    Raises:
        InputError: for the first rule that is broken.
    """
    if flags.data:
        parse_data(flags.data)
    block = parse_count(flags.block, "--block") if flags.block else None
    batch = parse_count(flags.batch_tokens, "--batch-tokens") if flags.batch_tokens else None
    if block is not None and block < 2:
        raise InputError(
            "A block holds at least two tokens", f"--block {flags.block} was given", "Try --block 512"
        )
    if batch is not None and block is not None and batch < block:
        raise InputError(
            "A step of training takes at least one block",
            f"--batch-tokens {flags.batch_tokens} and --block {flags.block} were given",
            f"Give at least --batch-tokens {block}",
        )


def budgets_named(flags: Flags) -> list[str]:
    """Return the budget as typed, or the budgets of a family."""
    return flags.budget.split(",")


def check_distillation(flags: Flags) -> None:
    """Check learning rate and distillation loss, and that targets and intermediate states go with the loss.

    Raises:
        InputError: for the first rule that is broken.
    """
    rate_of(flags.rate)
    loss = Loss.parse(flags.loss, flags.temperature)
    sparse, asked = flags.targets in _SPARSE, f"--targets {flags.targets}"
    if sparse and loss.needs_every_logit:
        raise InputError(
            "A loss that compares all logits needs targets that hold them",
            f"--loss {flags.loss} was given with {asked}",
            "Leave --targets out, or take --loss forward-kl",
        )
    compared = [name for name in flags.states if name not in ("auto", "none")]
    if compared and len(compared) < len(flags.states):
        raise InputError(
            "--states takes auto, none, or names of states",
            f"{' '.join(flags.states)} was given",
            "Leave auto and none out",
        )
    if sparse and compared:
        raise InputError(
            "Intermediate states are compared with targets that hold the teacher's",
            f"--states {' '.join(compared)} was given with {asked}",
            "Leave --targets out, or leave --states out",
        )


def parse_count(text: str, flag: str) -> int:
    """Parse a number of tokens: ``64k``, ``1.5M``, ``2B`` or a plain number.

    Raises:
        InputError: the text is not a number of tokens.
    """
    try:
        amount = BudgetText.parse(text)
    except InputError:
        amount = BudgetText(0, relative=True)
    if amount.relative or amount.amount < 1:
        raise InputError(f"{flag} takes numbers of tokens", f"{text!r} is none", "Write 64k, 1.5M or 2B")
    return round(amount.amount)


def parse_memory(text: str) -> int:
    """Parse ``--device-memory``: a number of bytes such as 80GB.

    Raises:
        InputError: the text is not a size.
    """
    try:
        amount = BudgetText.parse(text, Measure.WEIGHTS)
    except InputError:
        amount = BudgetText(0, relative=True)
    if amount.relative:
        raise InputError("--device-memory takes a size", f"{text!r} is none", "Write 80GB or 24GiB")
    return round(amount.amount)
