"""A model card that the hub understands and a person can use."""

from __future__ import annotations

import ast
import re

import pytest
from huggingface_hub import ModelCard, ModelCardData

from search.model_card import model_card
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS


def card_of(teacher: str = "org/teacher", licence: str | None = "apache-2.0") -> ModelCard:
    summary = sample_summary()
    summary["teacher"]["id"] = teacher
    return ModelCard(model_card(summary, summary["chosen"]["label"], licence))


def data_of(card: ModelCard) -> ModelCardData:
    """The front matter as the hub reads it."""
    assert isinstance(card.data, ModelCardData)
    return card.data


def test_the_front_matter_is_read_by_the_hub_s_own_reader() -> None:
    student, data = sample_summary()["promoted"][0], data_of(card_of())
    assert (data.base_model, data.license) == ("org/teacher", "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.model_name == student["label"]
    metrics = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert metrics["loss"] == student["loss"]
    assert metrics["bits_per_byte"] == student["bits_per_byte"]
    assert metrics["perplexity"] == pytest.approx(4.1525, abs=1e-4)


@pytest.mark.parametrize("teacher", ["../teachers/mine", "/srv/teacher", "a/b/c", "<img src=x>", "C:\\mine"])
def test_a_folder_is_no_base_model(teacher: str) -> None:
    assert data_of(card_of(teacher)).base_model is None


def test_an_unknown_licence_is_left_out() -> None:
    assert data_of(card_of(licence=None)).license is None
    assert "license" not in card_of(licence=None).content.split("---")[1]


def test_the_numbers_stand_beside_the_teacher_s_and_the_baselines() -> None:
    text = card_of().text
    assert "| loss, nats per token | 1.424 | 1.268 |" in text
    assert "| parameters | 1,327,984 | 2,665,120 |" in text
    assert "| h112-m360-q6-kv2-l7 | uniform shrink | 1.33 M | 1.485 | 14.2 |" in text
    assert "All were trained on the same tokens." in text


def test_benchmarks_the_distillation_and_what_happened_are_told() -> None:
    summary = VARIANTS["everything_asked"]()
    card = ModelCard(model_card(summary, summary["chosen"]["label"], None))
    for line in (
        "| quiz, acc \u2191 | 0.700 ± 0.021 | 0.750 ± 0.021 |",
        "| riddle, word_perplexity \u2193 | 41.000 | 40.000 |",
        "- loss: 0.5 × forward KL + 0.5 × cross-entropy, temperature 2",
        "- learning rate: warm-up, stable, decay",
        "- taught by: org/original",
        "- teacher\u2019s phases: org/teacher@stage2, after org/teacher@stage1",
        "- teachers passed over: org/larger",
        "- note: ended early, the validation loss rose twice",
    ):
        assert line in card.text.splitlines(), line
    results = {result.dataset_name: result.metric_value for result in data_of(card).eval_results or []}
    assert (results["quiz"], results["riddle"]) == (pytest.approx(0.7), 41.0)


def test_the_snippet_is_six_lines_of_python_that_need_transformers_alone() -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", card_of().text, re.DOTALL)
    tree = ast.parse(snippet)
    assert len([line for line in snippet.splitlines() if line]) == 6
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == [
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
    ]
    assert sample_summary()["promoted"][0]["path"] in snippet


def test_hostile_names_stay_text() -> None:
    text = card_of('`` <img src=x onerror="alert(1)"> | `x`\n# Heading').text
    assert "# Heading" not in [line.strip() for line in text.splitlines()]
    assert "``` `` <img" in text, "the code span ends at the backticks of the name"


def test_a_path_with_quotes_stays_a_string() -> None:
    summary = sample_summary()
    summary["promoted"][0]["path"] = 'models/"; import os #'
    [snippet] = re.findall(
        r"```python\n(.*?)```", model_card(summary, summary["chosen"]["label"], None), re.DOTALL
    )
    assert 'models/"; import os #' in [
        node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_retrained_model_has_a_card(name: str) -> None:
    summary = VARIANTS[name]()
    for student in [*summary["promoted"], *summary["baselines"]]:
        card = ModelCard(model_card(summary, student["label"], None))
        assert data_of(card).pipeline_tag == "text-generation"
        assert "nan" not in card.text.replace("(nan)", "")


def test_a_model_is_told_from_another_of_its_label_by_its_origin() -> None:
    summary = sample_summary()
    label = summary["chosen"]["label"]
    text = model_card(summary, label, None, origin="random-weights")
    assert f"| **{label}** | random weights |" in text
    assert f"| **{label}** | search |" in model_card(summary, label, None)


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(KeyError, match="h1-m1"):
        model_card(sample_summary(), "h1-m1", None)
