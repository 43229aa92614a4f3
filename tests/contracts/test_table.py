"""The table of support that is checked in is what trying gives."""

from __future__ import annotations

import pytest

from space.families.support import TABLE, TYPES, markdown, support_rows, try_type
from tests.versions import PINNED, of_pinned

SAMPLE = ("gpt2", "bert")
#: Decoders that have to pass for every axis that they have.
NAMED = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo2", "olmo3", "smollm3", "granite", "stablelm", "starcoder2", "cohere2", "glm4", "nemotron"),
    *("gpt2", "gpt_neox", "opt", "falcon", "bloom", "exaone4", "helium", "seed_oss", "hunyuan_v1_dense"),
    *("ernie4_5", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe"),
    "llama4_text",
)
#: Decoders with state-space or linear-attention layers, which stay whole.
HYBRIDS = ("nemotron_h", "bamba", "falcon_h1", "qwen3_next", "lfm2", "granitemoehybrid")
ENCODERS = ("bert", "roberta", "bart", "pegasus", "trocr")


def checked_in() -> dict[str, str]:
    """Each type's line of the file."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def cells(model_type: str) -> tuple[str, str]:
    """What a type is cut along, and what is not cut and why."""
    _, cut, why = checked_in()[model_type].strip("| ").split(" | ")
    return cut, why


@of_pinned
def test_every_type_stands_in_it_once() -> None:
    assert tuple(checked_in()) == TYPES


def test_it_says_of_which_transformers() -> None:
    assert f"transformers {PINNED}:" in TABLE.read_text(encoding="utf-8")


@of_pinned
def test_the_count_is_that_of_its_lines() -> None:
    text = TABLE.read_text(encoding="utf-8")
    counted = next(line for line in text.splitlines() if " types: " in line)
    nothing = sum(cells(model_type)[0] == "–" for model_type in TYPES)
    assert counted.startswith(f"{len(TYPES)} types: ")
    assert f"{nothing} are refused" in counted
    assert int(counted.split(" types: ")[1].split(" pass")[0]) >= 90


def test_a_sample_is_true() -> None:
    table = [try_type(model_type) for model_type in SAMPLE]
    assert markdown(table).splitlines()[2:] == [checked_in()[model_type] for model_type in SAMPLE]


@pytest.mark.slow
def test_a_sample_is_true_in_processes_of_its_own() -> None:
    table = support_rows(SAMPLE)
    assert not any(row.late for row in table)
    assert markdown(table).splitlines()[2:] == [checked_in()[model_type] for model_type in SAMPLE]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_it_is_true() -> None:
    table = support_rows(TYPES)
    assert markdown(table).splitlines()[2:] == list(checked_in().values())


#: Axes without a size of their own to choose.
TIED = (
    "heads and kv_heads: hidden moves with the size of its heads instead",
    "kv_heads: all heads share one",
)


@pytest.mark.parametrize("model_type", NAMED)
def test_a_named_type_passes_for_every_axis(model_type: str) -> None:
    cut, why = cells(model_type)
    assert why == "–" or why in TIED
    assert {"hidden", "layers"} <= {axis.split(" (")[0] for axis in cut.split(", ")}
    for axis in ("heads", "kv_heads"):
        assert axis in cut or axis in why
    assert "mlp" in cut


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_a_hybrid_is_cut_along_layers_and_neurons(model_type: str) -> None:
    cut, _ = cells(model_type)
    assert "layers" in cut
    assert "mlp" in cut


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_is_refused_as_one(model_type: str) -> None:
    cut, why = cells(model_type)
    assert cut == "–"
    assert "encoder" in why
