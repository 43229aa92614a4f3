"""The teacher's tokenizer: its own or none; transformers would make up an empty one."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from evaluators.huggingface.one_line import one_line
from evaluators.huggingface.quiet import quiet
from space.input_error import InputError

#: At least one of these holds the vocabulary, whatever the tokenizer's kind.
_VOCABULARIES = (
    "tokenizer.json",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
)


def load_tokenizer(
    directory: Path, id: str, config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the weights.

    Raises:
        InputError: there is none, it cannot be read, or it has tokens that the model does not know.
    """
    if not any(file for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        raise InputError(
            "a teacher comes with its tokenizer",
            f"{id} has no tokenizer.json nor any other vocabulary",
            "Put the tokenizer's files beside the weights (`tokenizer.save_pretrained(DIR)`)",
        )
    with quiet():
        tokenizer = _loaded(directory, id, trust_remote_code)
    known = config.get_text_config().vocab_size
    if tokenizer.vocab_size > known:
        raise InputError(
            "tokenizer and model have to share a vocabulary",
            f"the tokenizer of {id} has {tokenizer.vocab_size} tokens, the model {known}",
            "Put the tokenizer that the model was trained with beside the weights",
        )
    return tokenizer


def _loaded(directory: Path, id: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever is wrong with files that the user brought
        raise InputError(
            "the teacher's tokenizer has to be one that transformers loads",
            f"of that of {id} it says: {one_line(error)}",
            "Get its files again",
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
