"""The length of a block and the blocks of a step of training, from the flags or by default."""

from __future__ import annotations

from transformers import PretrainedConfig

from search.settings.flag_rules import parse_count
from search.settings.flags import Flags
from search.settings.scale import Scale
from space.input_error import InputError


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
