from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, OPTConfig, Qwen3MoeConfig

from space.axes.architecture import Axis
from space.axes.config_fields import with_sizes
from space.discovery import families as entries
from space.discovery.families import ENTRIES, FamilyEntry, family_entry
from space.discovery.probing import build_meta_model
from space.verification.reload import captured_warnings
from space.verification.verification import verify
from tests.contracts.tiny import CASES, verified
from tests.verified_once import verify_anew


@pytest.mark.parametrize("model_type", ENTRIES)
def test_its_fields_are_those_of_the_class(model_type: str) -> None:
    entry, config = ENTRIES[model_type], CONFIG_MAPPING[model_type]()
    names = [*(name for group in entry.alike.values() for name in group), *entry.rescaled]
    names += list(entry.explicit(config)) if entry.explicit else []
    assert names
    assert set(names) <= config.to_dict().keys()


def test_most_types_have_none() -> None:
    assert family_entry("llama") == FamilyEntry()
    assert len(ENTRIES) < 20


def test_dense_layers_are_named_one_by_one() -> None:
    config = Qwen3MoeConfig(num_hidden_layers=6, decoder_sparse_step=3, mlp_only_layers=[2])
    explicit = ENTRIES["qwen3_moe"].explicit
    assert explicit is not None
    assert explicit(config) == {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2, 3, 4]}
    assert build_meta_model(with_sizes(config, explicit(config))).shapes == build_meta_model(config).shapes


@pytest.mark.parametrize(
    ("model_type", "axis"),
    [
        ("opt", Axis.HIDDEN),
        ("minicpm3", Axis.LAYERS),
        ("lfm2", Axis.MLP),
        ("qwen3_moe", Axis.LAYERS),
    ],
)
@pytest.mark.slow
def test_without_it_the_axis_is_refused(model_type: str, axis: Axis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that is not needed is not kept."""
    special: dict[str, Any] = {"qwen3_moe": Qwen3MoeConfig(decoder_sparse_step=2)}
    config = special.get(model_type) or CONFIG_MAPPING[model_type]()
    with captured_warnings():
        whole = verified(model_type) if model_type in CASES else verify(config)
        assert axis in whole.small.free
        monkeypatch.setattr(entries, "ENTRIES", {**ENTRIES, model_type: FamilyEntry()})
        assert axis in verify_anew(config).small.refused


def test_an_embedding_as_wide_as_the_stream_stays_so() -> None:
    assert verified("opt").small.fields[Axis.HIDDEN] == ("hidden_size", "word_embed_proj_dim")
    with captured_warnings():
        narrow = verify(OPTConfig(word_embed_proj_dim=512)).small
    assert "word_embed_proj_dim" not in narrow.fields[Axis.HIDDEN]


@pytest.mark.slow
def test_a_scale_of_depth_follows_the_layers() -> None:
    found = verified("minicpm3")
    half = replace(found.small.teacher, layers=1)
    assert found.scales.fields(found.small, half)["scale_depth"] == pytest.approx(
        found.small.config.scale_depth * (1 / found.small.teacher.layers) ** 0.5
    )
