from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, Qwen3MoeConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from space.axis_map import discover
from space.families import FAMILIES, family_of
from space.input_error import InputError


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_config_has_every_word(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    family = family_of(config)
    assert family.model_type == model_type
    assert all(isinstance(getattr(config, name), int) for name in family.fields.values())
    assert len(set(family.fields.values())) == len(family.fields) == 5


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (GPT2Config(), "this one is of type 'gpt2'"),
        (Qwen3MoeConfig(), "this one is of type 'qwen3_moe', close to 'qwen3'"),
    ],
)
def test_a_type_that_is_not_vouched_for_is_refused_by_name(config: PretrainedConfig, values: str) -> None:
    for refuses in (family_of, discover):
        with pytest.raises(InputError) as refusal:
            refuses(config)
        assert str(refusal.value) == (
            f"The teacher has to be one of these types: {', '.join(sorted(FAMILIES))}; {values}. "
            "Choose another teacher with --model; no other type has passed the contract of extraction."
        )


def test_a_family_is_found_by_its_type_alone() -> None:
    assert family_of(LlamaConfig(num_hidden_layers=1)) is FAMILIES["llama"]
