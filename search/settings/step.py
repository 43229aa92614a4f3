"""The length of a block and the blocks of a step of training, from the flags or by default."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from search.settings.flag_rules import parse_count
from search.settings.flags import Flags
from search.settings.scale import Scale
from space.input_error import InputError


def read_long_context(text: str | None) -> tuple[int, float]:
    """Read ``32768=5%``: tokens of a longer block, and the share of retraining; (0, 0.0) if nothing is asked.

    Raises:
        InputError: it is something else.
    """
    if text is None:
        return 0, 0.0
    tokens, _, share = text.partition("=")
    try:
        part = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        part = 0.0
    if not 0 < part <= 0.5:
        raise InputError(
            "The long part of retraining has a length and a share, of half at most",
            f"--long-context {text} was given",
            "Write --long-context 32768=5%",
        )
    return parse_count(tokens, "--long-context"), part


def long_fields(flags: Flags, config: PretrainedConfig, block: int, batch_blocks: int) -> dict[str, Any]:
    """Return the fields of the long part of retraining.

    Args:
        flags: the user's.
        config: the teacher's.
        block: tokens of an ordinary block.
        batch_blocks: ordinary blocks of a step.

    Raises:
        InputError: longer blocks are no multiple of a block, no part of a step, or too long for the teacher.
    """
    long, share = read_long_context(flags.long_context)
    step, longest = block * batch_blocks, getattr(config, "max_position_embeddings", None)
    if long and (long <= block or long % block or step % long):
        raise InputError(
            "A long block has to be made of whole blocks, and a step of whole long ones",
            f"--long-context {flags.long_context} was given; a block has {block:,} tokens, a step {step:,}",
            f"Try --long-context {step}={share:g}, or more --batch-tokens",
        )
    if longest is not None and long > longest:
        raise InputError(
            "A block is at most as long as the teacher's positions",
            f"--long-context {flags.long_context} was given, and it has {longest:,}",
            f"Give at most {longest}",
        )
    return {"long_block": long, "long_share": share}


def step_of(flags: Flags, scale: Scale, config: PretrainedConfig, tokens: int) -> tuple[int, int]:
    """Return the tokens of a block and the blocks of a step, as named or by default.

    The default block is limited by the teacher's positions and the tokens of a rung; if only the block is
    named, a step has the default's tokens.

    Args:
        flags: the user's.
        scale: the defaults for the teacher's size.
        config: the teacher's.
        tokens: of the longest rung.

    Raises:
        InputError: the named block is longer than the teacher's positions, or than a named step.
    """
    longest = getattr(config, "max_position_embeddings", None)
    block = max(2, min(scale.block, longest or scale.block, tokens))
    batch_tokens = scale.batch_blocks * (scale.block if flags.block else block)
    if flags.block:
        block = parse_count(flags.block, "--block")
        if longest is not None and block > longest:
            raise InputError(
                "A block is at most as long as the teacher's positions",
                f"--block {flags.block} was given, and it has {longest:,}",
                f"Give at most --block {longest}",
            )
    if flags.batch_tokens:
        batch_tokens = parse_count(flags.batch_tokens, "--batch-tokens")
        if batch_tokens < block:
            raise InputError(
                "A step of training takes at least one block",
                f"--batch-tokens {flags.batch_tokens} was given, and a block has {block:,} tokens",
                f"Give at least --batch-tokens {block}, or a shorter --block",
            )
    return block, max(1, batch_tokens // block)
