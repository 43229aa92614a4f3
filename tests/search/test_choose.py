"""``python -m search.choose`` and ``python -m search.report`` on run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search import choose
from search.report import __main__ as report
from search.runs.summary import read
from tests.search.answer import Answer, Run, answer_of
from tests.search.report.sample import sample_summary
from tests.search.report.test_report import Page
from tests.search.report.variants import VARIANTS
from tests.search.saved import save_run


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(main: Callable[[list[str]], int], *arguments: str | Path) -> Answer:
        return answer_of(main, capsys, *arguments)

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs")


def test_it_names_the_runs_own_choice(ask: Run, saved: Path) -> None:
    summary = read(saved / "summary.json")
    models = [*summary["promoted"], *summary["baselines"][:-1]]
    best = min(models, key=lambda one: float(one["loss"]))
    found = ask(choose.main, saved)
    assert (found.status, found.err) == (0, "")
    first, second, *_ = found.out.splitlines()
    assert first.split() == ["chosen", best["label"]]
    assert second.strip() == str(saved / best["path"])
    assert "teacher  runner-up" in found.out
    assert f"{best['parameters']:,}" in found.out


def test_a_bare_name_lies_below_runs(ask: Run, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    assert ask(choose.main, saved.name).status == 0
    wrong = ask(choose.main, "dem")
    assert wrong.status == 2
    assert wrong.err == (
        "slimsearch: A run is named by its directory, or by its name below runs/; there is no 'dem'. "
        "Did you mean 'demo'.\n"
    )


def test_json_holds_the_answer_alone(ask: Run, saved: Path) -> None:
    summary = read(saved / "summary.json")
    fast = min(summary["promoted"] + summary["baselines"], key=lambda one: float(one["latency_ms"]))
    found = json.loads(ask(choose.main, saved, "--json", "--weights", "loss=0", "latency=1").out)
    assert found["chosen"]["label"] == fast["label"]
    assert found["chosen"]["latency"] == fast["latency_ms"]
    assert found["teacher"]["loss"] == summary["teacher"]["loss"]
    assert found["command"] is None


def test_if_none_lies_within_the_status_is_three(ask: Run, saved: Path) -> None:
    found = ask(choose.main, saved, "--max-latency", "1ms")
    assert found.status == choose.NONE_WITHIN == 3
    assert found.out.startswith("No retrained model lies within latency ≤ 1 ms; the nearest, ")
    assert "To retrain it" not in found.out, "no candidate lies within either"
    refused = ask(choose.main, saved, "--max-latency", "1ms", "--save")
    assert (refused.status, refused.out) == (2, "")


def test_save_makes_it_the_runs_choice(ask: Run, saved: Path) -> None:
    before = read(saved / "summary.json")
    other = before["promoted"][1]
    bound = f"{other['latency_ms']}ms"
    assert other["latency_ms"] < before["promoted"][0]["latency_ms"], "else the bound would not exclude it"
    found = ask(choose.main, saved, "--max-latency", bound, "--save")
    assert found.status == 0, found.err
    after = read(saved / "summary.json")
    assert after["chosen"]["label"] != before["chosen"]["label"]
    assert f"chosen     {after['chosen']['label']}" in found.out
    assert after | {"chosen": None} == before | {"chosen": None}, "nothing else is another"
    headline = Page((saved / "report.html").read_text(encoding="utf-8"))
    assert after["chosen"]["reason"].capitalize()[:20] in headline.text
    for entry in before["promoted"]:
        assert (saved / entry["path"] / "README.md").exists()
    assert not list(saved.glob(".*.part"))


def test_the_report_is_drawn_again(ask: Run, saved: Path) -> None:
    found = ask(report.main, saved)
    assert (found.status, found.out) == (0, f"{saved / 'report.html'}\n")
    assert read(saved / "summary.json")["chosen"]["label"] in (saved / "report.html").read_text()


def test_a_run_that_is_not_finished_has_no_choice(ask: Run, saved: Path) -> None:
    (saved / "summary.json").unlink()
    for main in (choose.main, report.main):
        found = ask(main, saved)
        assert (found.status, found.out) == (2, "")
        assert found.err.startswith("slimsearch: Only a run that is finished has a result; ")
        assert f"python -m search.dashboard {saved}" in found.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", '{"name": "de'),
        ("summary.json", json.dumps({**sample_summary(), "space": {}})),
        ("config.toml", 'name = "de'),
        ("config.toml", 'name = "demo"\n'),
    ],
    ids=["torn summary", "another summary", "torn configuration", "another configuration"],
)
def test_what_cannot_be_read_is_refused_and_left(name: str, text: str, ask: Run, saved: Path) -> None:
    (saved / name).write_text(text)
    found = ask(choose.main, saved, "--save")
    assert (found.status, found.out) == (2, "")
    assert found.err.count("\n") == 1
    assert (saved / name).read_text() == text
    assert not (saved / "report.html").exists()


@pytest.mark.parametrize("name", VARIANTS)
def test_summaries_at_the_edge_have_an_answer(name: str, ask: Run, tmp_path: Path) -> None:
    saved = save_run(tmp_path, VARIANTS[name]())
    for arguments in ([], ["--max-latency", "5ms"], ["--weights", "loss=1", "latency=1"], ["--json"]):
        found = ask(choose.main, saved, *arguments)
        assert found.status in (0, 2, 3)
        assert bool(found.out) == (found.status != 2), found.err
        assert found.err.count("\n") == (found.status == 2)
    summary = read(saved / "summary.json")
    models = [one for one in (*summary["promoted"], *summary["baselines"]) if one["loss"] is not None]
    losses = [one["loss"] for one in models if one["origin"] != "random-weights"]
    if losses and not summary["bounds"]:
        assert json.loads(found.out)["chosen"]["loss"] == min(losses)


def test_help_begins_with_examples(ask: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (choose.main, report.main):
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
        told = capsys.readouterr().out
        assert told.index("examples:") < told.index("options")
        assert "RUN" in told
