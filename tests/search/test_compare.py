"""``python -m search.compare``: runs side by side, and what is not compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.compare import main
from search.report.figures.joint import NamedSummary, joint_figure
from search.runs.comparison import Comparison
from search.runs.saved_run import find_run
from tests.search.report.sample import sample_summary
from tests.search.report.test_report import HOSTILE, Page, hostile_summary
from tests.search.report.variants import VARIANTS
from tests.search.saved import save_run

Capture = pytest.CaptureFixture[str]


def changed(**changes: Any) -> dict[str, Any]:
    """The sample with other values in its first level, dictionaries merged."""
    summary = sample_summary()
    for name, value in changes.items():
        summary[name] = summary[name] | value if isinstance(value, dict) else value
    return summary


def compared(*runs: Path) -> Comparison:
    return Comparison([find_run(run) for run in runs])


def test_figures_and_settings_stand_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    summary = sample_summary()
    one = save_run(tmp_path, summary, name="one", seed=0)
    two = save_run(tmp_path, changed(chosen=None), name="two", seed=1, rung_tokens=(1000, 4000))
    assert main([str(one), str(two)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell] for line in lines if line[0]}
    assert rows["run"] == ["one", "two"]
    chosen = summary["promoted"][0]
    assert rows["chosen"] == [chosen["label"], "–"]
    assert rows["loss"] == [f"{chosen['loss']:.4f}", "–"]
    assert rows["loss above teacher"] == [f"{chosen['loss'] - summary['teacher']['loss']:+.4f}", "–"]
    assert rows["Kendall τ, rung 0 to rung 1"] == ["+0.48", "+0.48"]
    assert rows["Kendall τ, rung 1 to retraining"] == ["+0.80", "+0.80"]
    assert "Kendall τ, rung 0 to retraining" not in rows
    assert rows["hours"] == ["0.13", "0.13"]
    assert rows["seed"] == ["0", "1"]
    assert rows["rung_tokens"] == ["1000, 2000", "1000, 4000"]
    assert "sampler" not in rows, "what is the same is not repeated"


def test_json_has_the_figures_as_numbers(tmp_path: Path, capsys: Capture) -> None:
    summary = sample_summary()
    runs = [save_run(tmp_path, summary, name=name) for name in ("one", "two")]
    assert main([*map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["loss"] == 2 * [summary["promoted"][0]["loss"]]
    assert found["figures"]["tokens"] == 2 * [summary["tokens"]["total"]]
    assert found["cautions"] == []
    assert found["settings"] == {}


@pytest.mark.parametrize("name", VARIANTS)
def test_summaries_at_the_edge_are_laid_beside_others(name: str, tmp_path: Path, capsys: Capture) -> None:
    one, two = save_run(tmp_path, name="one"), save_run(tmp_path, VARIANTS[name](), name="two")
    for runs in ([one, two], [two, one]):
        assert main([*map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert len({len(line) for line in out.splitlines()[:12]}) == 1, "aligned"


def test_a_password_is_not_repeated(tmp_path: Path, capsys: Capture) -> None:
    one = save_run(tmp_path, name="one", storage="postgresql://me:secret@host/name")
    two = save_run(tmp_path, name="two")
    for more in ([], ["--json"], ["--out", str(tmp_path / "page.html")]):
        assert main([str(one), str(two), *more]) == 0
        out = capsys.readouterr().out
        assert "postgresql://me:***@host/name" in out
        assert "secret" not in out
    assert "secret" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_losses_of_the_same_validation_text_compare(tmp_path: Path) -> None:
    """The fingerprint differs where only more tokens were trained on."""
    one = save_run(tmp_path, name="one")
    more = changed(corpus={"fingerprint": "another", "distillation_tokens": 9})
    two = save_run(tmp_path, more, name="two")
    assert compared(one, two).losses_compare
    assert compared(one, two).cautions() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": {"validation_tokens": 512}}, "different tokens"),
        ({"corpus": {"block": 64}}, "different tokens"),
        ({"teacher": {"bits_per_byte": 0.9}}, "different tokens"),
        ({"corpus": {"id": "another text"}}, "different texts"),
        ({"device": "cuda"}, "different devices"),
    ],
    ids=["fewer tokens", "other blocks", "another tokenizer", "another text", "another device"],
)
def test_what_must_not_be_compared_is_said(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    one, two = save_run(tmp_path, name="one"), save_run(tmp_path, changed(**changes), name="two")
    found = compared(one, two)
    (caution,) = found.cautions()
    assert said in caution
    assert found.latencies_compare == (said != "different devices")
    apart = [row[0] for row in found.rows() if row[0].endswith("(not comparable)")]
    assert ("loss (not comparable)" in apart) == (said != "different devices")
    assert ("latency (not comparable)" in apart) == (said == "different devices")


def test_the_joint_front_is_that_of_all_models(tmp_path: Path) -> None:
    summaries = [sample_summary(), sample_summary()]
    summaries[1]["promoted"][0].update(loss=1.0, latency_ms=5.0)
    summaries[1]["promoted"][0]["objectives"].update(loss=1.0, latency=5.0)
    shown = [NamedSummary(name, summary) for name, summary in zip(("one", "two"), summaries, strict=True)]
    figure = joint_figure(shown, "loss", True)
    assert figure is not None
    together, *traces = figure.traces
    assert (together["x"], together["y"]) == ([5.0, None], [1.0, None]), "nothing is as good in anything"
    assert [trace["name"] for trace in traces if trace["showlegend"]] == ["one", "two"]
    points = [x for trace in traces if trace["mode"] == "markers" for x in trace["x"]]
    ready = [entry for one in summaries for entry in (*one["promoted"], *one["baselines"][:-1])]
    assert sorted(points) == sorted(entry["latency_ms"] for entry in ready), "all but random weights"
    apart = joint_figure(shown, "bits_per_byte", False)
    assert apart is not None
    assert apart.layout["xaxis"]["title"]["text"].startswith("parameters")


def test_the_page_is_whole_and_text_stays_text(tmp_path: Path) -> None:
    one = save_run(tmp_path, name="one")
    two = save_run(tmp_path, hostile_summary(HOSTILE), name="two", data=HOSTILE)
    out = tmp_path / "page.html"
    assert main([str(one), str(two), "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert HOSTILE in page.text
    assert tags.count("script") == 3
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert policy.count("'sha256-") == 2


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: Capture) -> None:
    one, two = save_run(tmp_path, name="one"), save_run(tmp_path, name="two")
    for arguments, said in (
        ([one], "1 were named, of which 1 differ"),
        ([one, tmp_path / "." / "one"], "2 were named, of which 1 differ"),
        ([one, tmp_path / "three"], "there is no "),
        ([one, two, "--out", tmp_path / "no" / "page.html"], "No such file or directory"),
    ):
        assert main([*map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert said in err
