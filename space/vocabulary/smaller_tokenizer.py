"""A tokenizer with fewer tokens: the teacher's, without those that go, its tokens numbered anew.

Where a text has none of the tokens that went, it is split as before: BPE makes the same merges, since those
that are gone made nothing that stayed; Unigram's best way and WordPiece's longest pieces are still there.
That is why the scores of Unigram are left as they are: to normalise them again would add the same number to
each token, and so favour ways of more tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from space.input_error import InputError
from space.vocabulary.token_table import Described, as_pair, merged

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
#: Files of a tokenizer that do not number tokens.
_WITHOUT_NUMBERS = (_FILE, _CONFIG, "special_tokens_map.json")


def described(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what ``tokenizer.json`` has of a tokenizer.

    Raises:
        InputError: it is not one of the ``tokenizers`` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            "Tokens can go from a tokenizer that the tokenizers library runs",
            f"this one is a {type(tokenizer).__name__}",
            "Keep the whole vocabulary",
        )
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def smaller(before: Described, kept: Sequence[int]) -> dict[str, Any]:
    """Return the description of a tokenizer with the tokens that are kept, numbered in their order.

    Args:
        before: of the teacher's tokenizer.
        kept: (k,) the numbers of the tokens that stay, ascending: with every token the ones that it is merged
            from, and all that ``TokenTable.always`` names.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    after = dict(copy.deepcopy(before))
    after["model"] = _smaller_model(before["model"], numbers)
    after["added_tokens"] = [
        {**token, "id": numbers[token["id"]]}
        for token in before.get("added_tokens") or ()
        if token["id"] in numbers
    ]
    after["post_processor"] = _renumbered(before.get("post_processor"), numbers)
    if padding := after.get("padding"):
        padding["pad_id"] = numbers.get(padding["pad_id"], 0)
    return after


def _smaller_model(model: Described, numbers: Mapping[int, int]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        pieces = [piece for number, piece in enumerate(model["vocab"]) if number in numbers]
        unknown = model.get("unk_id")
        return {**model, "vocab": pieces, "unk_id": None if unknown is None else numbers[unknown]}
    vocabulary = {name: numbers[old] for name, old in model["vocab"].items() if old in numbers}
    found = {**model, "vocab": vocabulary}
    if "merges" in model:
        found["merges"] = [merge for merge in model["merges"] if _stays(model, merge, vocabulary)]
    return found


def _stays(model: Described, merge: str | Sequence[str], vocabulary: Mapping[str, int]) -> bool:
    left, right = as_pair(merge)
    return left in vocabulary and right in vocabulary and merged(model, left, right) in vocabulary


def _renumbered(step: Any, numbers: Mapping[int, int]) -> Any:
    """Number anew what a post-processor adds: lists of ``ids``, and the pairs of Bert's and Roberta's."""
    if isinstance(step, list):
        return [_renumbered(one, numbers) for one in step]
    if not isinstance(step, Mapping):
        return step
    found = {key: _renumbered(value, numbers) for key, value in step.items()}
    if isinstance(ids := step.get("ids"), list):
        found["ids"] = [numbers[old] for old in ids]
    for end in ("sep", "cls"):
        if isinstance(pair := step.get(end), list):
            found[end] = [pair[0], numbers[pair[1]]]
    return found


def smaller_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with fewer tokens, as ``AutoTokenizer`` reads it; its templates are the same.

    Args:
        tokenizer: the teacher's.
        kept: see ``smaller``.

    Raises:
        InputError: its class does not take other numbers for its tokens.
    """
    wanted = smaller(described(tokenizer), kept)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save_pretrained(path)
        _drop_other_vocabularies(path)
        (path / _FILE).write_text(json.dumps(wanted, ensure_ascii=False), encoding="utf-8")
        _renumber_config(path / _CONFIG, {old: new for new, old in enumerate(kept)})
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    names = dict(zip(tokenizer.convert_ids_to_tokens(list(kept)), range(len(kept)), strict=True))
    if found.get_vocab() != names:
        raise InputError(
            "The class of a tokenizer has to take fewer tokens from its file",
            f"{type(tokenizer).__name__} numbers them otherwise",
            "Keep the whole vocabulary",
        )
    return found


def _drop_other_vocabularies(path: Path) -> None:
    for file in path.iterdir():
        if file.is_file() and file.name not in _WITHOUT_NUMBERS and file.suffix != ".jinja":
            file.unlink()


def _renumber_config(path: Path, numbers: Mapping[int, int]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if decoder := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {
            str(numbers[int(old)]): about for old, about in decoder.items() if int(old) in numbers
        }
    path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
