"""The report is one file that asks nothing of the network and lets no text become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.report import RankingView, write_report
from search.report.document import report_html
from search.report.tables import benchmark_table, rank_table
from space.input_error import InputError
from tests.search.report.sample import sample_ranking, sample_summary
from tests.search.report.variants import VARIANTS

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'&amp;{{ 7*7 }}"
STABILITY = ("stability-0", "stability-1", "stability-2")
FETCHING = {"src", "href", "srcset", "action", "data", "poster", "formaction", "background", "ping"}


class Page(HTMLParser):
    """The elements of a page, its text outside of scripts and styles, and its data blocks."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, Any] = {}
        self.style = ""
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        self.elements.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        """Leave a script or style."""
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        """Record text, or what a script or style holds."""
        tag, attributes = self._inside
        if attributes.get("type") == "application/json":
            self.data[str(attributes["id"]).removesuffix("-data")] = json.loads(data)
        elif tag == "style":
            self.style += data
        elif tag != "script":
            self.text += data


def page_of(summary: dict[str, Any], ranking: RankingView | None = None) -> Page:
    """The parsed report of a summary."""
    return Page(report_html(summary, ranking))


def resolved(value: Any) -> Any:
    """A figure whose colours by name are real ones, for Plotly's own validators."""
    if isinstance(value, str) and re.fullmatch(r"@[a-z]+( [0-9.]+)?", value):
        return "Arial" if value == "@font" else "#123456"
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def page() -> Page:
    return page_of(sample_summary(), sample_ranking())


def test_nothing_is_fetched(page: Page) -> None:
    targets = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in FETCHING
    ]
    assert targets
    assert all(str(target).startswith(("#", "./")) for target in targets)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object", "embed", "base"})
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_policy_allows_the_page_s_own_scripts_alone(page: Page) -> None:
    [policy] = [
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    assert re.search(r"script-src( 'sha256-[A-Za-z0-9+/]{43}='){2}$", policy)
    assert "unsafe-eval" not in policy


def test_the_file_is_below_six_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(sample_summary(), sample_ranking(), path)
    assert 1_000_000 < path.stat().st_size < 6_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_hundreds_of_trials_fit_too(tmp_path: Path) -> None:
    summary = sample_summary()
    trials = summary["trials"]
    summary["trials"] = [
        trial | {"number": trial["number"] + 100 * copy, "label": f"{trial['label']}-{copy}"}
        for copy in range(20)
        for trial in trials
    ]
    assert len(summary["trials"]) == 800
    write_report(summary, sample_ranking(), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 6_000_000


def test_rows_have_names_of_their_own(page: Page) -> None:
    names = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    summary = sample_summary()
    rows = {f"trial-{trial['rung']}-{trial['number']}" for trial in summary["trials"]}
    rows |= {f"model-{student['label']}" for student in (*summary["promoted"], *summary["baselines"][:-1])}
    assert rows | {"model-random-weights", "model-teacher"} <= set(names)


def test_every_label_and_failure_is_in_the_text(page: Page) -> None:
    summary = sample_summary()
    for trial in summary["trials"]:
        assert trial["label"] in page.text
        assert (trial["failure"] or "") in page.text
    assert summary["chosen"]["reason"] in page.text
    assert summary["command"] in page.text


def test_models_are_linked_relative_to_the_report(page: Page) -> None:
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    for student in sample_summary()["promoted"]:
        assert f"./{student['path']}/" in links


def test_a_link_leads_nowhere_but_to_the_folder() -> None:
    summary = sample_summary()
    summary["promoted"][0]["path"] = 'javascript:alert(1)//"? #x'
    links = [str(attributes["href"]) for tag, attributes in page_of(summary).elements if tag == "a"]
    assert "./javascript%3Aalert%281%29//%22%3F%20%23x/" in links


def hostile_summary(text: str) -> dict[str, Any]:
    """The sample with ``text`` wherever free text can stand."""
    summary = sample_summary()
    summary["name"] = text or "x"
    summary["command"] = summary["device"] = text
    summary["teacher"].update(id=text, revision=text[:12] or None)
    summary["corpus"].update(id=text, fingerprint=text)
    summary["chosen"]["reason"] = text
    summary["trials"][23]["failure"] = text or "x"
    summary["promoted"][1].update(path=text or None, loss=None, failure=text or "x")
    summary["objectives"][1].update(unit=text, description=text)
    summary["objectives"].append({"name": text or "x", "unit": text})
    summary["rank_correlation"][0].update({"from": text, "to": text})
    summary["versions"]["torch"] = text
    summary["seconds"][text] = 1.0
    summary["teacher"]["phases"] = summary["teacher"]["passed_over"] = [text, text]
    summary["teacher"]["taught_by"] = text or None
    summary["promoted"][0]["note"] = text or "x"
    summary["prompts"][0] = summary["teacher"]["continuations"][0]["text"] = text
    summary["promoted"][0]["continuations"][1]["text"] = text
    summary["energy"]["counters"] = {text: 1.0}
    failed = {"metric": None, "value": None, "error": None, "higher_is_better": None, "failure": text}
    for model in (summary["teacher"], *summary["promoted"]):
        model["benchmarks"] = {text or "x": failed}
    return summary


def test_text_cannot_become_markup() -> None:
    summary = hostile_summary(HOSTILE)
    page, calm = page_of(summary), page_of(hostile_summary("Calm"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
    assert page.text.count(HOSTILE) == calm.text.count("Calm") - 2 > 10, "the revision is cut short"
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_text_cannot_become_markup_inside_a_figure() -> None:
    data = json.dumps(page_of(hostile_summary(HOSTILE)).data)
    assert "<img" not in data
    assert "<script" not in data
    assert "&lt;img src=x onerror=alert(1)&gt;" in data


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'/!-[]{}%#@ scriptalert\u2028\\\n"), min_size=1, max_size=40))
def test_no_text_changes_the_elements(text: str) -> None:
    page, calm = page_of(hostile_summary(text)), page_of(hostile_summary("Calm"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
    assert page.data.keys() == calm.data.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_summary_has_a_report_that_plotly_can_draw(name: str) -> None:
    page = page_of(VARIANTS[name](), sample_ranking())
    plots = {attributes["id"] for _, attributes in page.elements if attributes.get("class") == "plot"}
    assert plots == page.data.keys()
    assert "energy-hidden" in plots
    for figure in page.data.values():
        go.Figure(data=resolved(figure["traces"]), layout=resolved(figure["layout"]))


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("sample_summary", {"front", "curves", "intervals", *STABILITY, "sizes", "rates-0"}),
        ("one_trial", {"front", "curves", "intervals", "rates-0"}),
        ("one_model", {"front", "curves", "intervals", "rates-0"}),
        ("nothing_evaluated", {"rates-0"}),
        ("all_failed", {"rates-0"}),
        ("loss_alone", {"front", "curves", "intervals", *STABILITY, "sizes"}),
    ],
)
def test_figures_that_would_be_empty_are_left_out(name: str, figures: set[str]) -> None:
    assert page_of(VARIANTS[name]()).data.keys() == figures


def test_the_front_is_drawn_against_what_was_searched_for() -> None:
    titles = {
        name: page_of(VARIANTS[name]()).data["front"]["layout"]["xaxis"]["title"]["text"]
        for name in ("sample_summary", "without_latency", "loss_alone")
    }
    assert titles["sample_summary"].startswith("latency, ms")
    assert titles["without_latency"].startswith("memory, bytes")
    assert titles["loss_alone"].startswith("parameters ")


def test_how_students_learnt_stands_in_one_place() -> None:
    text = " ".join(page_of(VARIANTS["everything_asked"]()).text.split())
    place = text[text.index("Distillation loss") : text.index("Corpus text")]
    for said in (
        "0.5 × forward KL + 0.5 × cross-entropy, temperature 2",
        "a late block and the embedding",
        "tokens drawn from the teacher\u2019s predictions, 14.7\u00a0MB for 98.3\u00a0k tokens",
        "the teacher itself, beside the student",
        "warm-up, stable, decay",
        "on 500\u00a0k tokens of the text, loss 1.402 before, 1.268 after",
        "org/teacher@stage2, after org/teacher@stage1",
    ):
        assert " ".join(said.split()) in place
    calm = " ".join(page_of(sample_summary()).text.split())
    assert "lossforward KL targetsfinal states of the teacher, 629 MB for 1.97 M tokens learning rate" in calm
    assert "teacher corrected" not in calm
    assert "teacher correction" not in calm, "no tokens were spent on it"


def test_benchmarks_stand_beside_the_teacher_s_and_a_failure_says_why() -> None:
    summary = VARIANTS["everything_asked"]()
    table = benchmark_table(summary)
    assert table is not None
    assert table.columns == [("quiz", "acc \u2191"), ("riddle", "word_perplexity \u2193")]
    kinds = [(kind, [cell.text for cell in cells]) for kind, _, cells in table.rows]
    assert kinds[0] == ("teacher", ["0.750 ± 0.021", "40.000"])
    assert kinds[1] == ("chosen", ["0.700 ± 0.021", "41.000"])
    assert kinds[2] == ("promoted", ["0.650 ± 0.021", "\u2013"])
    assert [kind for kind, _ in kinds[3:]] == ["baseline"] * 3, "random weights were not kept"
    text = page_of(summary).text
    assert "the examples are out of reach" in text
    assert "Ended early, the validation loss rose twice." in text
    assert benchmark_table(sample_summary()) is None
    assert "Benchmarks" not in page_of(sample_summary()).text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "sample_summary",
            "The interval held for 4 of 5 retrained models; the median was off by 0.040 nats on",
        ),
        ("one_model", "The interval held for the one retrained model; the median was off by 0.035 nats."),
        ("one_trial", "No candidate was retrained, so nothing is known of how well it holds."),
    ],
)
def test_forecasts_are_scored_in_a_sentence(name: str, said: str) -> None:
    assert said in " ".join(page_of(VARIANTS[name]()).text.split())


def test_a_forecast_that_failed_is_told() -> None:
    summary = VARIANTS["one_model"]()
    summary["forecast"]["held"] = 0
    assert "The interval did not hold for the one retrained model" in page_of(summary).text


def test_every_order_stands_beside_its_baselines() -> None:
    table = rank_table(sample_summary())
    assert table is not None
    assert table.columns == [("rung 1", "16 candidates"), ("retraining", "5 candidates")]
    assert table.rows == [
        ("parameter count", [("\u22120.12", "0.208"), ("+0.20", "0.097")]),
        ("rung 0, straight after pruning", [("+0.48", "0.041"), ("+0.60", "0.015")]),
        ("rung 1", [None, ("+0.80", "0.000")]),
    ]
    text = " ".join(page_of(sample_summary()).text.split())
    assert "rung 0, straight after pruning+0.480.041+0.600.015" in text


@pytest.mark.parametrize("name", ["one_trial", "one_model", "all_failed", "nothing_evaluated"])
def test_without_two_candidates_no_order_is_worth_anything(name: str) -> None:
    assert rank_table(VARIANTS[name]()) is None


def test_how_many_candidates_an_order_was_judged_by() -> None:
    summary = sample_summary()
    summary["rank_correlation"][1]["candidates"] = 14
    table = rank_table(summary)
    assert table is not None
    assert table.columns[0] == ("rung 1", "14 to 16 candidates")


def test_a_run_in_which_all_failed_says_so_and_why() -> None:
    text = page_of(VARIANTS["all_failed"]()).text
    assert "No model could be chosen" in text
    assert re.search(r"out of memory\s+\(44×\)", text)


def test_a_wrong_summary_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(InputError, match="'teacher' is a required property"):
        write_report(_without(sample_summary(), "teacher"), None, path)
    assert not path.exists()


def _without(summary: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != key}
