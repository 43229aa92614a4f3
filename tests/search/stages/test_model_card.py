"""A model card that the hub understands and a person can use."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from evaluators.teacher.writing import Terms
from search.stages.model_card import model_card
from search.stages.provenance import Dataset, Provenance
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS

KNOWN = Provenance("org/teacher", Terms(licence="apache-2.0"))
UNKNOWN = Provenance()


def card_of(provenance: Provenance = KNOWN, teacher: str = "org/teacher") -> ModelCard:
    summary = sample_summary()
    summary["teacher"]["id"] = teacher
    return ModelCard(model_card(summary, summary["chosen"]["label"], provenance))


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


def test_what_is_not_known_is_left_out() -> None:
    front = card_of(UNKNOWN).content.split("---")[1]
    for key in ("license", "base_model", "datasets", "language"):
        assert key not in front
    assert "states no licence, so this one states none" in card_of(UNKNOWN).text


def test_the_terms_are_carried_over_with_the_files_that_state_them() -> None:
    terms = Terms(
        licence="other", licence_name="teacher-terms", licence_link="LICENSE", language=["en", "de"]
    )
    card = card_of(Provenance("org/teacher", terms, files=("LICENSE", "NOTICE")))
    data = data_of(card)
    assert (data.license, data.license_name, data.license_link) == ("other", "teacher-terms", "LICENSE")
    assert data.language == ["en", "de"]
    assert (
        "`other` `teacher-terms`. The teacher\u2019s files `LICENSE`, `NOTICE` lie beside this one."
        in card.text
    )


def test_several_licences_stay_several() -> None:
    stated: Any = data_of(card_of(Provenance(terms=Terms(licence=["mit", "apache-2.0"])))).license
    assert stated == ["mit", "apache-2.0"]


def test_a_data_set_of_the_hub_is_named_where_the_hub_looks() -> None:
    data = data_of(card_of(Provenance(datasets=(Dataset("org/text", "v2", "part"),))))
    assert data.datasets == ["org/text"]
    for result in data.eval_results or []:
        told = (result.dataset_type, result.dataset_revision, result.dataset_config)
        assert told == ("org/text", "v2", "part")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_index_survives_the_hub_s_reader_and_writer(name: str, tmp_path: Path) -> None:
    """Read from the file and written again, every result is as it was."""
    summary = VARIANTS[name]()
    for student in [*summary["promoted"], *summary["baselines"]]:
        path = tmp_path / "README.md"
        path.write_text(
            model_card(summary, student["label"], KNOWN, origin=student["origin"]), encoding="utf-8"
        )
        card = ModelCard.load(path, ignore_metadata_errors=False)
        results = data_of(card).eval_results
        assert (results is None) == (student["loss"] is None)
        assert all(math.isfinite(result.metric_value) for result in results or [])
        card.save(path)
        assert data_of(ModelCard.load(path)).eval_results == results


def test_the_numbers_stand_beside_the_teacher_s_and_the_baselines() -> None:
    text = card_of().text
    assert "| loss, nats per token | 1.424 | 1.268 |" in text
    assert "| parameters | 1,327,984 | 2,665,120 |" in text
    assert "| h112-m360-q6-kv2-l7 | uniform shrink | 1.33 M | 1.485 | 14.2 |" in text
    assert "All were trained on the same tokens." in text


def test_benchmarks_the_distillation_and_what_happened_are_told() -> None:
    summary = VARIANTS["everything_asked"]()
    card = ModelCard(model_card(summary, summary["chosen"]["label"], UNKNOWN))
    for line in (
        "| quiz, acc \u2191 | 0.700 ± 0.021 | 0.750 ± 0.021 |",
        "| riddle, word_perplexity \u2193 | 41.000 | 40.000 |",
        "- loss: 0.5 × forward KL + 0.5 × cross-entropy, temperature 2",
        "- peak learning rate: 0.00135",
        "- learning rate: warm-up, stable, decay, its peak 1/4 of the rule\u2019s, by a range test",
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


def test_the_snippet_of_a_model_with_code_trusts_it() -> None:
    summary = sample_summary()
    text = model_card(summary, summary["chosen"]["label"], UNKNOWN, own_code=True)
    assert text.count(", trust_remote_code=True)") == 2


def test_hostile_names_stay_text() -> None:
    text = card_of(UNKNOWN, '`` <img src=x onerror="alert(1)"> | `x`\n# Heading').text
    assert "# Heading" not in [line.strip() for line in text.splitlines()]
    assert "``` `` <img" in text, "the code span ends at the backticks of the name"


def test_a_path_with_quotes_stays_a_string() -> None:
    summary = sample_summary()
    summary["promoted"][0]["path"] = 'models/"; import os #'
    [snippet] = re.findall(
        r"```python\n(.*?)```", model_card(summary, summary["chosen"]["label"], UNKNOWN), re.DOTALL
    )
    assert 'models/"; import os #' in [
        node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_retrained_model_has_a_card(name: str) -> None:
    summary = VARIANTS[name]()
    for student in [*summary["promoted"], *summary["baselines"]]:
        card = ModelCard(model_card(summary, student["label"], UNKNOWN))
        assert data_of(card).pipeline_tag == "text-generation"
        assert "nan" not in card.text.replace("(nan)", "")


def test_a_model_is_told_from_another_of_its_label_by_its_origin() -> None:
    summary = sample_summary()
    label = summary["chosen"]["label"]
    text = model_card(summary, label, UNKNOWN, origin="random-weights")
    assert f"| **{label}** | random weights |" in text
    assert f"| **{label}** | search |" in model_card(summary, label, UNKNOWN)


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(KeyError, match="h1-m1"):
        model_card(sample_summary(), "h1-m1", UNKNOWN)
