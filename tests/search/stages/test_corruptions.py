"""Whatever was done to a directory, a run is right or ends in one message.

A run is right if every tensor that the file has under a name of the model is the model's, as the file has it,
if the model has nothing that the file lacks, and if the uncut student gives its logits.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.residence import Residence
from search.run import main
from search.stages import preparation
from search.stages.identity import check_identity
from tests.search.stages.corruptions import corrupt

CASES = 300
#: Of those, tried by default.
FEW = 1


class BegunError(Exception):
    """The run went on to its candidates."""


def check_and_stop(residence: Residence, *rest: Any) -> None:
    """In the place of the identity check: what comes after it needs no more of the files."""
    check_identity(residence, *rest)
    raise BegunError(residence.model)


def flags(model: Path, real: Path, out: Path) -> list[str]:
    return [
        *("--model", str(model), "--data", str(real / "tinystories.txt"), "--out", str(out)),
        *("--budget", "60%", "--trials", "2", "--rung-tokens", "1k", "--retrain-tokens", "1k", "-v"),
        *("--calibration-samples", "2", "--depth-by", "influence"),
        *("--repair", "none", "--basis", "coordinate"),
    ]


def check_whole(model: PreTrainedModel, directory: Path) -> None:
    """The teacher is what the file says."""
    stored = load_file(directory / "model.safetensors")
    own, found = model.state_dict(), set[str]()
    for name, values in stored.items():
        mine = _own_name(name, own)
        if mine:
            assert torch.equal(own[mine].float(), values.float()), f"{name} is not that of the file"
            found.add(mine)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    missing = {name for name, _ in model.named_parameters()} - found
    assert missing <= ({"lm_head.weight"} if tied else set()), f"{missing} are not in the file"


def _own_name(name: str, own: dict[str, Tensor]) -> str | None:
    """The model's name of a stored tensor, which may have a wrapper's before it, or lack the beginning."""
    if name in own:
        return name
    return next((mine for mine in own if name.endswith(f".{mine}") or mine == f"model.{name}"), None)


def outcome(model: Path, real: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Begin a run; return its message, or "" if it came to its candidates and is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for users
        try:
            status = main(flags(model, real, out))
        except BegunError as begun:
            assert "the uncut student gives the teacher's logits" in capsys.readouterr().err
            check_whole(begun.args[0], model)
            return ""
    text = capsys.readouterr().err
    assert status == 2, text
    assert "Traceback" not in text
    messages: list[str] = re.findall(r"^slimsearch: .*", text, re.MULTILINE)
    assert len(messages) == 1, text
    return messages[0]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= FEW)) for seed in range(CASES)]
)
def test_it_is_right_or_refused(
    seed: int, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparation, "check_identity", check_and_stop)
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    shutil.copytree(real / "stories260K", model, copy_function=shutil.copyfile)
    model.chmod(0o755)
    said = corrupt(model, seed)
    print(said, "->", outcome(model, real, tmp_path / "runs", capsys))
