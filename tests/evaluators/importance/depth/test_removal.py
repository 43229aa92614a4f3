"""Loss and divergence without layers, beside models that do not have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states
from evaluators.importance import layer_removal as removal
from evaluators.importance.layer_passes import DepthSetting, PartialPasses, depends_on_states_alone
from evaluators.importance.layer_removal import by_divergence, by_loss, without_blocks, without_each
from space.axes.axis_map import layer_modules
from tests.contracts.tiny import tokens, verified
from tests.evaluators.importance.depth.by_surgery import Cost, divergence, loss
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_model

LAYERS = 4
CALIBRATION = random_tokens(5, 9)
#: Layers return tuples or states, take them by position or name; of one kind or several, of mixtures, with
#: windows, of attention and state spaces side by side or in turns, with things between the layers.
CLASSES = ("gpt2", "gemma2", "mixtral", "falcon_h1", "nemotron_h", "bloom", "opt", "lfm2")
COSTS: dict[removal.Costs, Cost] = {by_loss: loss, by_divergence: divergence}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=LAYERS)


def setting_of(
    model: PreTrainedModel, calibration: Tensor = CALIBRATION, rows: int | list[int] = 2, reuse: bool = True
) -> DepthSetting:
    return DepthSetting(model, map_of(model.config), calibration.split(rows), reuse)


def forwards(model: nn.Module) -> list[Any]:
    return [vars(module).get("forward") for module in model.modules()]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("costs", COSTS)
@torch.no_grad()
def test_without_a_layer(model: PreTrainedModel, costs: removal.Costs, reuse: bool) -> None:
    found = without_each(setting_of(model, reuse=reuse), costs)
    wanted = [COSTS[costs](model, CALIBRATION, [layer]) for layer in range(LAYERS)]
    assert_close(found, torch.tensor(wanted).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("costs", COSTS)
@torch.no_grad()
def test_without_a_layer_while_others_are_gone(
    model: PreTrainedModel, costs: removal.Costs, reuse: bool
) -> None:
    found = without_each(setting_of(model, reuse=reuse), costs, removed=[1, 3])
    wanted = [COSTS[costs](model, CALIBRATION, [layer, 1, 3]) for layer in (0, 2)]
    assert_close(found[[0, 2]], torch.tensor(wanted).double(), rtol=1e-5, atol=1e-6)
    assert found.isnan().tolist() == [False, True, False, True]


@pytest.mark.parametrize("tokens_at_once", [1, 40, 4096])
@pytest.mark.parametrize("reuse", [True, False])
@torch.no_grad()
def test_without_any_block(
    model: PreTrainedModel, reuse: bool, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "TOKENS_AT_ONCE", tokens_at_once)
    found = without_blocks(setting_of(model, reuse=reuse), by_loss)
    for length in range(1, LAYERS + 1):
        for start in range(LAYERS):
            cost = float(found[length - 1, start])
            if start + length > LAYERS:
                assert cost == float("inf")
            else:
                wanted = loss(model, CALIBRATION, range(start, start + length))
                assert cost == pytest.approx(wanted, rel=1e-5)


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_any_split_into_batches_gives_the_same(model: PreTrainedModel, sizes: list[int]) -> None:
    calibration = random_tokens(sum(sizes), 5)
    whole, parts = (setting_of(model, calibration, rows) for rows in (sum(sizes), sizes))
    for costs in COSTS:
        assert_close(without_each(whole, costs), without_each(parts, costs), rtol=1e-5, atol=1e-7)
    assert_close(without_blocks(whole, by_loss), without_blocks(parts, by_loss), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "case",
    [*CLASSES[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in CLASSES[3:])],
)
@torch.no_grad()
def test_passes_that_start_in_the_middle_are_whole_passes(case: str) -> None:
    """Oracle: the class's own full pass, in which the layers that are out run and are not listened to."""
    model, axis_map, text = verified(case).model, verified(case).small, tokens()
    assert depends_on_states_alone(model, axis_map, text)
    quick, naive = (DepthSetting(model, axis_map, [text], reuse) for reuse in (True, False))
    wanted = without_blocks(naive, by_loss)
    assert len(wanted[torch.isfinite(wanted)].unique()) > 2
    assert_close(without_blocks(quick, by_loss), wanted, rtol=1e-5, atol=1e-6)
    assert_close(without_each(quick, by_loss), wanted[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_is_cut_off_does_not_run(model: PreTrainedModel) -> None:
    """L passes without one layer each run (L − 1) / 2 layers on average."""
    ran: list[int] = []
    layers = layer_modules(model, map_of(model.config))
    handles = [
        layer.get_submodule("mlp").register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, layer in enumerate(layers)
    ]
    without_each(setting_of(model, rows=5), by_loss)
    for handle in handles:
        handle.remove()
    assert ran == [*range(4), *range(1, 4), *range(2, 4), 3]


class Remembering(nn.Module):
    """A layer that leaves something for the next one, or reads what was left."""

    def __init__(self, layer: nn.Module, left: dict[str, Tensor], leaves: bool) -> None:
        super().__init__()
        self.layer, self.left, self.leaves = layer, left, leaves

    def forward(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        output: Tensor = self.layer(hidden_states, *arguments, **keywords)
        if self.leaves:
            self.left["states"] = output
            return output
        return output + self.left.pop("states")


@torch.no_grad()
def test_layers_that_share_more_than_states_are_found_out() -> None:
    model = tiny_model(num_hidden_layers=LAYERS)
    axis_map = map_of(model.config)
    assert depends_on_states_alone(model, axis_map, CALIBRATION)
    left: dict[str, Tensor] = {}
    layers = model.get_submodule("model.layers")
    for number, leaves in ((1, True), (3, False)):
        layers.register_module(str(number), Remembering(layers.get_submodule(str(number)), left, leaves))
    assert not depends_on_states_alone(model, axis_map, CALIBRATION)
    # What is left behind is not the same, and whoever reads it needs no fresh one.
    left["states"] = torch.tensor(1.0)
    layers.get_submodule("3").left = dict.fromkeys(["states"], torch.tensor(1.0))  # type: ignore[assignment]
    layers.get_submodule("3").leaves = True  # type: ignore[assignment]
    assert depends_on_states_alone(model, axis_map, CALIBRATION)


@torch.no_grad()
def test_the_teacher_is_left_as_it_was() -> None:
    model, other = tiny_model(), tiny_model()
    own = forwards(model)
    without_each(setting_of(model), by_divergence, [1])
    without_blocks(setting_of(model, reuse=False), by_loss)
    assert same_weights(model, other)
    assert (forwards(model), hooks(model)) == (own, 0)


@pytest.mark.parametrize("reuse", [True, False])
@torch.no_grad()
def test_the_teacher_is_left_as_it_was_after_an_error(reuse: bool) -> None:
    model = tiny_model()
    passes = PartialPasses(model, map_of(model.config), CALIBRATION.long(), reuse=reuse)
    wanted, own = passes.whole, forwards(model)
    norm = model.get_submodule("model.norm")

    def fails(*_: Any) -> None:
        raise MemoryError

    handle = norm.register_forward_pre_hook(fails)
    with pytest.raises(MemoryError):
        passes.without(1, 2)
    handle.remove()
    assert (forwards(model), hooks(model)) == (own, 0)
    assert torch.equal(final_states(model, CALIBRATION.long()), wanted)


@torch.no_grad()
def test_a_module_s_own_forward_comes_back() -> None:
    """Offloading libraries put a forward of their own on a layer."""
    model = tiny_model()
    layer = model.get_submodule("model.layers.0")
    own = layer.forward
    vars(layer)["forward"] = own
    PartialPasses(model, map_of(model.config), CALIBRATION.long()).without(0, 2)
    assert vars(layer)["forward"] is own


def test_layers_are_not_scored_in_training_mode(model: PreTrainedModel) -> None:
    model.train()
    try:
        with pytest.raises(AssertionError, match="evaluation mode"):
            PartialPasses(model, map_of(model.config), CALIBRATION.long())
    finally:
        model.eval()
