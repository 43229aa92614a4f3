from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import DbrxConfig, Gemma4TextConfig, GPT2Config, LlamaConfig, MptConfig
from transformers.models.dbrx.configuration_dbrx import DbrxFFNConfig

from space.axes.architecture import Axis
from space.axes.config_fields import (
    NAMES,
    first_field_of,
    layers_of,
    own_fields_of_layers,
    read_field,
    with_sizes,
)
from tests.space.models import SMALL
from tests.versions import skip_before


class TestReading:
    def test_the_first_name_that_a_config_has(self) -> None:
        assert first_field_of(SMALL, NAMES[Axis.HIDDEN]) == "hidden_size"
        assert first_field_of(GPT2Config(), ("hidden_size",)) == "n_embd"
        assert first_field_of(SMALL, NAMES[Axis.EXPERTS]) is None

    def test_none_is_no_size(self) -> None:
        assert GPT2Config().n_inner is None
        assert first_field_of(GPT2Config(), ("n_inner",)) is None
        assert first_field_of(GPT2Config(n_inner=8), ("n_inner",)) == "n_inner"

    def test_dots_lead_into_configs_within(self) -> None:
        config = DbrxConfig()
        assert read_field(config, "ffn_config.moe_num_experts") == DbrxFFNConfig().moe_num_experts
        assert first_field_of(config, NAMES[Axis.EXPERTS]) == "ffn_config.moe_num_experts"
        assert read_field(config, "ffn_config.nothing.there") is None

    def test_fields_that_some_layers_have_for_themselves(self) -> None:
        sizes: dict[str, Any] = {"num_hidden_layers": 2, "head_dim": 8}
        config = Gemma4TextConfig(**sizes | {"global_head_dim": 16})
        assert own_fields_of_layers(config) == {"head_dim"}
        assert read_field(config, "head_dim") == 8
        assert first_field_of(config, NAMES[Axis.HEAD_DIM]) == "head_dim"
        alike = Gemma4TextConfig(**sizes | {"global_head_dim": 8})
        assert not own_fields_of_layers(alike)
        assert not own_fields_of_layers(SMALL)

    def test_layers(self) -> None:
        assert layers_of(SMALL) == 3
        assert layers_of(MptConfig(n_layers=7)) == 7


class TestWithSizes:
    def test_it_changes_what_is_named_and_nothing_else(self) -> None:
        config = with_sizes(SMALL, {"hidden_size": 16})
        assert isinstance(config, LlamaConfig)
        assert config.to_dict() == SMALL.to_dict() | {"hidden_size": 16}
        assert SMALL.hidden_size == 24

    def test_within_a_config_within(self) -> None:
        skip_before("5.23", "the config of dbrx does not take what it gives")
        before = DbrxConfig()
        after = with_sizes(before, {"ffn_config.moe_num_experts": 3})
        assert read_field(after, "ffn_config.moe_num_experts") == 3
        assert read_field(before, "ffn_config.moe_num_experts") != 3
        assert read_field(after, "ffn_config.ffn_hidden_size") == read_field(
            before, "ffn_config.ffn_hidden_size"
        )

    def test_the_class_keeps_its_rules(self) -> None:
        with pytest.raises(StrictDataclassError, match="not a multiple of the number of attention heads"):
            with_sizes(SMALL, {"hidden_size": 22})
