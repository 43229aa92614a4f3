"""What the user says about distillation, as the loop wants it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from evaluators.distillation.states import StateKind, StatePlace
from evaluators.distillation.targets.live import LiveTargets, TextTargets
from search.settings.methods import check_states, loss_of, states_asked, states_of, targets_as_dict
from space.input_error import InputError
from tests.evaluators.tiny_models import tiny_model
from tests.search.synthetic import run_config


def layered(layers: int) -> PreTrainedModel:
    """Stands in for a model of which only the number of layers is asked."""
    text = SimpleNamespace(num_hidden_layers=layers)
    return cast(PreTrainedModel, SimpleNamespace(config=SimpleNamespace(get_text_config=lambda **_: text)))


def test_the_loss_and_its_temperature() -> None:
    assert str(loss_of(run_config())) == "forward-kl"
    found = loss_of(run_config(loss="0.5*forward-kl+0.5*cross-entropy", temperature=2.0))
    assert str(found) == "0.5*forward-kl+0.5*cross-entropy at temperature 2"


@pytest.mark.parametrize(
    ("names", "states"),
    [
        (("auto",), ()),
        (("none",), ()),
        (("late", "embedding"), ("late", "embedding")),
        (("late", "late"), ("late",)),
    ],
)
def test_auto_and_none_are_no_states(names: tuple[str, ...], states: tuple[str, ...]) -> None:
    assert states_asked(names) == states


def test_states_are_matched_by_the_layers_of_both() -> None:
    assert states_of(run_config(), layered(4), layered(8)) is None
    found = states_of(run_config(states=("late", "embedding")), layered(4), layered(8))
    assert found is not None
    assert found.of_student == [StatePlace(StateKind.BLOCK, 1), StatePlace(StateKind.EMBEDDING)]
    assert found.of_teacher == [StatePlace(StateKind.BLOCK, 5), StatePlace(StateKind.EMBEDDING)]


def test_a_class_without_a_list_of_blocks_is_refused() -> None:
    model = tiny_model()
    check_states(run_config(states=("late", "embedding", "attention")), model)
    base: Any = model.model
    base.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(base.layers)})
    check_states(run_config(), model)
    with pytest.raises(InputError, match="leave --states out"):
        check_states(run_config(states=("late",)), model)


def test_targets_are_told_by_their_form() -> None:
    tokens = torch.zeros(3, 5, dtype=torch.int32)
    text = TextTargets(tokens, torch.device("cpu"))
    assert targets_as_dict(text) == {"form": "text", "tokens": 15, "bytes": 0}
    assert targets_as_dict(LiveTargets(tiny_model(), tokens)) == {"form": "live", "tokens": 15, "bytes": 0}
