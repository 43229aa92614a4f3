"""Whether a teacher has an embedding for every token that its tokenizer makes of a text."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.teacher.said import first_names, say_once
from space.input_error import InputError

_RULE = "every token of a text needs a row in the teacher's embedding table"
_REMEDY = (
    "Put the tokenizer that the model was trained with beside the weights, or give these tokens rows "
    "(`resize_token_embeddings`)"
)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, id: str) -> None:
    """Refuse a tokenizer of another model, and one whose documents begin or end with a token that has no row.

    Other tokens without a row, such as one that was added for padding, are told: no text may have them.

    Raises:
        InputError: see above.
    """
    if tokenizer.vocab_size > rows:
        raise InputError(
            "tokenizer and model have to share a vocabulary",
            f"the tokenizer of {id} has {tokenizer.vocab_size} tokens, the model {rows}",
            "Put the tokenizer that the model was trained with beside the weights",
        )
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token >= rows:
            raise _without_row(tokenizer, token, rows, id)
    beyond = sorted((number, name) for name, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        names = [f"{name!r} ({number})" for number, name in beyond]
        say_once(
            f"the tokenizer of {id} has tokens beyond the {rows} rows of the embedding table, which no text "
            f"may have: {first_names(names)}"
        )


def check_tokens(tokens: Iterable[Tensor], tokenizer: PreTrainedTokenizerBase, rows: int, id: str) -> None:
    """Check that a teacher has a row for all tokens of some texts.

    Args:
        tokens: token numbers, of any shape.
        tokenizer: the teacher's.
        rows: of its embedding table.
        id: its name in messages.

    Raises:
        InputError: a token has none.
    """
    for some in tokens:
        largest = int(some.max()) if some.numel() else 0
        if largest >= rows:
            raise _without_row(tokenizer, largest, rows, id)


def check_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, rows: int, id: str) -> None:
    """Check the tokens of some texts as ``check_tokens`` does."""
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    check_tokens(map(torch.tensor, found), tokenizer, rows, id)


def _without_row(tokenizer: PreTrainedTokenizerBase, token: int, rows: int, id: str) -> InputError:
    name = tokenizer.convert_ids_to_tokens(token)
    return InputError(_RULE, f"{name!r} is token {token}, and the table of {id} has {rows} rows", _REMEDY)
