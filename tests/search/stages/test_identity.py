"""The uncut student is the teacher, and where it is not, the run ends with the place."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.residence import Residence
from evaluators.importance.method import Method
from evaluators.importance.rank import rank
from search.stages.identity import check_identity
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.evaluators.conftest import messages_are_heard
from tests.evaluators.tiny_models import random_tokens, tiny_model

__all__ = ["messages_are_heard"]

CALIBRATION = random_tokens(8, 16)
BASES = [BasisName.COORDINATE, BasisName.WEIGHTED]


@cache
def map_in(basis: BasisName, tied: bool = False) -> AxisMap:
    return verified_axis_map(tiny_model("llama", tie_word_embeddings=tied).config, basis)


def parts(
    basis: BasisName, dtype: torch.dtype = torch.float32, tied: bool = False
) -> tuple[PreTrainedModel, AxisMap, Ranking, dict[str, Tensor]]:
    """A teacher, its map and ranking, and its sorted weights."""
    model, axis_map = tiny_model("llama", tie_word_embeddings=tied), map_in(basis, tied)
    nn.Module.to(model, dtype)
    ranking = rank(model, axis_map, CALIBRATION, "", method=Method(basis=basis))
    return model, axis_map, ranking, sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)


def refused(model: PreTrainedModel, axis_map: AxisMap, ranking: Ranking, weights: dict[str, Tensor]) -> str:
    with pytest.raises(InputError) as refusal:
        check_identity(Residence(model), axis_map, ranking, weights, CALIBRATION[0])
    return str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("basis", BASES)
def test_the_uncut_student_is_the_teacher(
    basis: BasisName, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model, axis_map, ranking, weights = parts(basis, dtype)
    with caplog.at_level("INFO"):
        check_identity(Residence(model), axis_map, ranking, weights, CALIBRATION[0])
    [line] = [line for line in caplog.messages if "uncut" in line]
    assert float(line.split()[-4]) < (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn.o_proj"),
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj"),
        ("lm_head.weight", "model.norm.weight or lm_head.weight"),
    ],
)
def test_a_tensor_that_is_not_cut_as_the_others_is_found(name: str, place: str, basis: BasisName) -> None:
    model, axis_map, ranking, weights = parts(basis)
    weights[name] = weights[name].flip(0)
    message = refused(model, axis_map, ranking, weights)
    assert f"the paths part at {place}. Take" in message
    assert "differs by up to" in message


def test_a_head_that_is_counted_as_tied_and_is_not_is_found() -> None:
    model, axis_map, ranking, weights = parts(BasisName.COORDINATE, tied=True)
    apart = tiny_model("llama", tie_word_embeddings=False, seed=1)
    model.lm_head = apart.lm_head
    assert "the paths part at model.norm.weight or model.embed_tokens.weight" in refused(
        model, axis_map, ranking, weights
    )


def test_a_student_that_does_not_fit_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("search.stages.identity.free_bytes", lambda _: 1000)
    check_identity(
        Residence(tiny_model()),
        map_in(BasisName.COORDINATE),
        *parts(BasisName.COORDINATE)[2:],
        CALIBRATION[0],
    )
    assert "was not compared with the teacher: it does not fit beside it" in caplog.text
