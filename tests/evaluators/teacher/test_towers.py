"""Students put back among the towers of the whole: with pictures in, the same as the masked whole teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from evaluators.importance.moments import unfolded_norms
from evaluators.teacher import load_config
from evaluators.teacher.towers import Towers, whole_config, write_whole
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.axes.config_fields import own_fields_of_layers
from space.cutting.basis import Basis, BasisName, TurnedNorm
from space.cutting.extraction import (
    extract,
    layers_kept,
    saved_tensors,
    sort_by_importance,
    stream_columns,
)
from space.cutting.ranking import Ranking
from space.discovery.discovery import discover
from space.input_error import InputError
from space.verification.behaviour import random_rotation
from space.verification.contract import random_ranking
from space.verification.masked import masked_teacher
from space.verification.verification import verified_axis_map
from tests.evaluators.teacher.checkpoints import CONFIG, WEIGHTS, llama, load, save, written
from tests.evaluators.teacher.wholes import WHOLES, seen, skip_if_class_is_broken, tiny_whole

__all__ = ["save"]
Save = Callable[..., Path]
#: As many tokens for a picture as the tiny tower makes.
CHANGES: dict[str, dict[str, Any]] = {"gemma3": {"mm_tokens_per_image": 4}}
every_whole = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "gemma4")) for kind in WHOLES]
)


def map_of(path: Path, kind: str) -> AxisMap:
    """The teacher's map; only Gemma derives a scale from hidden, which is found by trying."""
    config = load_config(str(path))
    return verified_axis_map(config) if "gemma" in kind else discover(config).axis_map


def sizes_of(axis_map: AxisMap) -> Architecture:
    """Three quarters of hidden and of the MLP, and a layer less where layers can go."""
    smaller = {Axis.HIDDEN: 12, Axis.MLP: 18, Axis.LAYERS: 2}
    if own_fields_of_layers(axis_map.config):
        del smaller[Axis.LAYERS]
    return axis_map.complete({axis: size for axis, size in smaller.items() if axis in axis_map.free})


def put_back(
    path: Path, axis_map: AxisMap, ranking: Ranking, folder: Path, sizes: Architecture | None = None
) -> Path:
    """The whole with a student in it, as a run writes it."""
    teacher, sizes = load(path), sizes or sizes_of(axis_map)
    canonical = sort_by_importance(saved_tensors(teacher.model, axis_map), axis_map, ranking)
    student = extract(canonical, axis_map, ranking, sizes)
    config = copy.deepcopy(student.config)
    written(student, path, folder / "student")
    towers = Towers(whole_config(path, "it"), axis_map.config, config, "it")
    columns = stream_columns(axis_map, ranking, sizes.hidden)
    write_whole(path, folder / "student", folder / "whole", towers, teacher.model, columns)
    return folder / "whole"


def read(path: Path) -> PreTrainedModel:
    """The whole as its users load it; nothing is missing, and nothing left over."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    model, report = loaded
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert isinstance(model, PreTrainedModel)
    return model


#: What writes into the text half, by the ends of names, with the dimension along which it does.
WRITERS = {
    "gemma3": {"multi_modal_projector.mm_input_projection_weight": 1},
    "gemma4": {"embed_vision.embedding_projection.weight": 0},
    "llama4": {"multi_modal_projector.linear_1.weight": 0},
    "mistral3": {"multi_modal_projector.linear_2.weight": 0},
    "qwen3_5": {"visual.merger.linear_fc2.weight": 0, "visual.merger.linear_fc2.bias": 0},
}


def written_into(model: PreTrainedModel, kind: str) -> dict[str, tuple[Tensor, int]]:
    """The tensors that write into the text half, by the ends of their names."""
    named = dict(model.named_parameters())
    return {
        end: (next(values for name, values in named.items() if name.endswith(end)), dim)
        for end, dim in WRITERS[kind].items()
    }


def masked_whole(kind: str, whole: PreTrainedModel, text: PreTrainedModel, kept: Tensor) -> PreTrainedModel:
    """A copy of the whole with a masked text half, whose projectors write nowhere else than the student's."""
    masked = copy.deepcopy(whole)
    names = {module: name for name, module in masked.named_modules()}
    table, head = masked.get_input_embeddings(), masked.get_output_embeddings()
    masked.set_submodule(names[table].rpartition(".")[0], text.get_submodule("model"))
    masked.set_submodule(names[head], text.get_submodule("lm_head"))
    gone = torch.ones(16, dtype=torch.bool)
    gone[kept] = False
    with torch.no_grad():
        for values, dim in written_into(masked, kind).values():
            values.movedim(dim, -1)[..., gone] = 0
        if kind == "mistral3":  # of the inner neurons the student has those of the largest norms
            layers = "model.multi_modal_projector.linear_{}.weight"
            first, second = (masked.get_parameter(layers.format(number)) for number in (1, 2))
            full = whole.get_parameter(layers.format(2))
            strength = first.norm(dim=1) * full.norm(dim=0)
            second[:, strength.argsort()[: 16 - len(kept)]] = 0
    return masked


class TestPutBack:
    @every_whole
    @torch.no_grad()
    def test_with_pictures_it_is_the_masked_whole_teacher(
        self, kind: str, save: Save, tmp_path: Path
    ) -> None:
        whole = tiny_whole(kind, **CHANGES.get(kind, {}))
        try:
            whole(**seen(kind))
        except AttributeError as error:
            skip_if_class_is_broken(error)
            raise
        path = save(whole)
        axis_map = map_of(path, kind)
        ranking, sizes = random_ranking(axis_map, 0), sizes_of(axis_map)
        student = read(put_back(path, axis_map, ranking, tmp_path))
        kept = ranking.order(Axis.HIDDEN, None)[: sizes.hidden]
        layers = layers_kept(axis_map, ranking, sizes)
        with masked_teacher(load(path).model, axis_map, ranking, sizes, layers) as text:
            wanted = masked_whole(kind, whole, text, kept)(**seen(kind)).logits
        found = student(**seen(kind)).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        for values, _ in written_into(student, kind).values():
            values.mul_(0)
        blind = student(**seen(kind)).logits
        assert (blind - found).abs().max() > 100 * (found - wanted).abs().max(), "the picture matters"

    @every_whole
    def test_other_parts_stay_byte_for_byte(self, kind: str, save: Save, tmp_path: Path) -> None:
        path = save(tiny_whole(kind))
        (path / "preprocessor_config.json").write_text('{"do_resize": false}')
        axis_map = map_of(path, kind)
        place = put_back(path, axis_map, random_ranking(axis_map, 0), tmp_path)
        before, after = load_file(path / WEIGHTS), load_file(place / WEIGHTS)
        towers = [name for name in before if "language_model" not in name and "lm_head" not in name]
        changed = [name for name in towers if not torch.equal(before[name], after[name])]
        inner = {"multi_modal_projector.linear_1.weight"} if kind == "mistral3" else set()
        cut = {*WRITERS[kind], *inner}
        assert {name.partition("model.")[2] or name for name in changed} <= cut, changed
        assert len(changed) == len(cut)
        assert (place / "preprocessor_config.json").read_text() == '{"do_resize": false}'

    @torch.no_grad()
    def test_in_a_turned_basis_what_projectors_write_is_turned(self, save: Save, tmp_path: Path) -> None:
        """With all directions kept, the whole with a turned text half computes what it did.

        Its head is tied, so the final norm is not folded; with level weights it is the same in any basis.
        """
        whole = tiny_whole("mistral3")
        final_norm = next(one for name, one in whole.named_parameters() if name.endswith("model.norm.weight"))
        final_norm.fill_(0.7)
        path = save(whole)
        axis_map = verified_axis_map(load_config(str(path)), BasisName.WEIGHTED)
        ranking = random_ranking(axis_map, 0)
        level = TurnedNorm(torch.full((16,), 0.7), torch.ones(16))
        norms = dict.fromkeys(unfolded_norms(axis_map), level)
        basis = Basis(random_rotation(16, False, 0), torch.ones(16), norms=norms)
        turned = Ranking(ranking.scores, ranking.kv_heads, "", "", ranking.expert_groups, basis)
        place = put_back(path, axis_map, turned, tmp_path, axis_map.teacher)
        torch.testing.assert_close(read(place)(**seen("mistral3")).logits, whole(**seen("mistral3")).logits)


class TestRefused:
    def test_a_model_of_text(self, save: Save) -> None:
        with pytest.raises(InputError, match="it, of the type llama, has one"):
            whole_config(save(llama()), "it")

    def test_parts_that_do_not_follow_hidden(self, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tiny_whole("mistral3"))
        text = load_config(str(path))
        student = copy.deepcopy(text)
        student.hidden_size = 12
        towers = Towers(whole_config(path, "it"), text, student, "it")
        assert set(towers.cut.values()) == {(0,), (0, 1)}
        student.hidden_size = 16
        assert Towers(towers.whole, text, student, "it").cut == towers.cut, "units may be in another order"
        monkeypatch.setattr("evaluators.teacher.towers._shapes", lambda config: {"tower.weight": (4, 4)})
        with pytest.raises(InputError, match="none of its tensors outside the text half follows hidden"):
            Towers(towers.whole, text, student, "it").check()

        def half(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
            return {"projector.weight": (config.text_config.hidden_size // 2, 4)}

        monkeypatch.setattr("evaluators.teacher.towers._shapes", half)
        with pytest.raises(InputError, match=r"projector\.weight follows another size of the text half"):
            Towers(towers.whole, text, student, "it").check()


def test_its_config_is_the_whole_s_with_the_student_s_sizes(save: Save, tmp_path: Path) -> None:
    path = save(tiny_whole("qwen3_5"))
    before = json.loads((path / CONFIG).read_text())
    axis_map = map_of(path, "qwen3_5")
    after = json.loads((put_back(path, axis_map, random_ranking(axis_map, 0), tmp_path) / CONFIG).read_text())
    assert after["text_config"]["hidden_size"] == after["vision_config"]["out_hidden_size"] == 12
    assert after["text_config"]["num_hidden_layers"] == len(after["text_config"]["layer_types"]) == 2
    assert after["architectures"] == before["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    same = {"vision_config": before["vision_config"] | {"out_hidden_size": 12}}
    assert {name: after[name] for name in before if name != "text_config"} == {
        **{name: value for name, value in before.items() if name != "text_config"},
        **same,
    }
