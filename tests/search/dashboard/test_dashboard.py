"""What a run puts into Optuna's dashboard, and the server that shows it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import Trial
from optuna_dashboard import get_note, save_note, wsgi

from search.dashboard.__main__ import App, artifact_store, guard, keep_current, main, server_of
from search.dashboard.content import write_content
from search.rungs.loop import open_rungs
from search.runs.live import saved_trials
from search.runs.saved_run import SavedRun, find_run
from search.runs.summary import read
from tests.search.saved import save_run
from tests.search.storage.test_servers import Proxy
from tests.search.synthetic import Evaluator, demo_space, make_search
from tests.warm_python import WarmPopen

ROOT = Path(__file__).parents[3]


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> SavedRun:
    """A finished run of one's own."""
    copy = tmp_path / "small"
    shutil.copytree(small_run, copy)
    return find_run(copy)


def filled(run: SavedRun) -> SavedRun:
    """The run as it is found anew after its content was written."""
    write_content(run, artifact_store(run))
    return find_run(run.path)


def trial_note(run: SavedRun, rung: int, label: str) -> str:
    (trial,) = [one for one in saved_trials(run) if (one.rung, one.label) == (rung, label)]
    return str(get_note(Trial(run.studies[rung], trial.storage_id)))


def plots(study: optuna.Study) -> dict[str, Any]:
    """The Plotly objects of a study, put together as the dashboard does."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {name: json.loads(text) for name, text in get_plotly_graph_objects(attributes).items()}


def test_notes_say_what_the_summary_says(finished: SavedRun) -> None:
    run, summary = filled(finished), read(finished.path / "summary.json")
    first, second, last = (get_note(study) for study in run.studies)
    assert "straight after pruning" in first
    assert "distilled for 2,000 tokens" in second
    assert "distilled for 4,000 tokens" in last
    (pair,) = [p for p in summary["rank_correlation"] if (p["from"], p["to"]) == ("rung 0", "rung 1")]
    assert f"at rung 1: {pair['kendall_tau']:+.2f}, over {pair['candidates']} candidates" in first
    assert "loss (nats per token), latency (ms)" in second
    assert f"/dashboard/studies/{run.studies[0]._study_id}" in second
    taken = summary["chosen"]["label"]
    for rung in range(3):
        note = trial_note(run, rung, taken)
        assert f"## {taken}: the model to take" in note
        for trial in summary["trials"]:
            if trial["label"] == taken:
                assert f"| rung {trial['rung']} | {trial['tokens']:,} | {trial['loss']:.4f} |" in note
        (entry,) = [one for one in summary["promoted"] if one["label"] == taken]
        assert f"**{entry['loss']:.4f}**" in note
        assert f"`{run.path / entry['path']}`" in note
    (other,) = [one for one in summary["promoted"] if one["label"] != taken]
    best = next(one["loss"] for one in summary["promoted"] if one["label"] == taken)
    gap = f"{other['loss'] - best:.4f}"
    assert f"Not chosen: its loss is {gap} nats higher than that of {taken}" in trial_note(
        run, 2, other["label"]
    )


def test_figures_have_their_colours_and_the_models(finished: SavedRun) -> None:
    run = filled(finished)
    found = plots(run.studies[0])
    assert sorted(found) == ["learning-curves", "pareto-front"]
    assert not any(plots(study) for study in run.studies[1:])
    for figure in found.values():
        assert '"@' not in json.dumps(figure)
        assert "#2458d3" in json.dumps(figure), "the accent of the light theme"
    summary = read(run.path / "summary.json")
    (star,) = [
        trace for trace in found["pareto-front"]["data"] if trace.get("marker", {}).get("symbol") == "star"
    ]
    assert (star["x"], star["y"]) == ([summary["teacher"]["latency_ms"]], [summary["teacher"]["loss"]])
    labels = [one["text"] for one in found["learning-curves"]["layout"]["annotations"]]
    assert f"<b>chosen: {summary['chosen']['label']}" in "".join(labels)


def test_written_twice_nothing_piles_up(finished: SavedRun) -> None:
    run = filled(finished)
    journal = (run.path / "study.journal").read_bytes()
    files = sorted((run.path / "artifacts").iterdir())
    kept = {one["label"]: one for one in (*run.summary["promoted"], *run.summary["baselines"]) if one["path"]}
    cards = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(run.studies[0])}
    assert sorted(cards) == sorted(f"{label}.md" for label in kept)
    assert len(files) == len(cards)
    for label, entry in kept.items():
        readme = run.path / entry["path"] / "README.md"
        assert (run.path / "artifacts" / cards[f"{label}.md"]).read_bytes() == readme.read_bytes()
        assert f"/{cards[f'{label}.md']})" in trial_note(run, 0, label), "its note leads there"
    filled(run)
    assert (run.path / "study.journal").read_bytes() == journal
    assert sorted((run.path / "artifacts").iterdir()) == files


def test_what_a_person_wrote_or_removed_is_heeded(finished: SavedRun) -> None:
    run = filled(finished)
    study, taken = run.studies[1], run.summary["chosen"]["label"]
    save_note(study, "mine")
    storage, number = run.studies[0]._storage, run.studies[0]._study_id
    (gone, *_) = get_all_artifact_meta(run.studies[0])
    storage.set_study_system_attr(number, f"artifacts:{gone.artifact_id}", json.dumps(None))
    changed = run.summary | {"chosen": {"label": taken, "reason": "another reason"}}
    (run.path / "summary.json").write_text(json.dumps(changed))
    again = filled(find_run(run.path))
    assert get_note(again.studies[1]) == "mine"
    assert "another reason" in get_note(again.studies[2])
    assert "another reason" in trial_note(again, 1, taken)
    told = [
        json.loads(text)
        for key, text in storage.get_study_system_attrs(number).items()
        if key.startswith("artifacts:")
    ]
    assert [one["filename"] for one in told if one].count(gone.filename) == 1


def at_work(folder: Path, storage: str = "") -> SavedRun:
    """A run of invented answers whose worker was killed."""
    directory = save_run(folder, name="synthetic", trials=12, storage=storage)
    (directory / "summary.json").unlink()
    (directory / "teacher.json").write_text('{"loss": 1.5, "latency_ms": 14.0}')
    run = find_run(directory)
    search = make_search(
        run.config, demo_space(), open_rungs(run.config, demo_space(), directory), Evaluator(stop_at=9)
    )
    with pytest.raises(KeyboardInterrupt):
        search.run()
    return run


def drawn_points(run: SavedRun) -> int:
    """Marks in the figure of the front."""
    traces = plots(run.studies[0])["pareto-front"]["data"]
    return sum(len(trace["x"]) for trace in traces if trace["mode"] == "markers")


def test_a_run_at_work_has_notes_and_figures_of_what_is_there(tmp_path: Path) -> None:
    run = filled(at_work(tmp_path))
    complete = sum(trial.state == "complete" for trial in saved_trials(run))
    assert complete == 9
    assert drawn_points(run) == complete + 1, "and the teacher"
    assert "straight after pruning" in get_note(run.studies[0])
    rungs = open_rungs(run.config, demo_space(), run.path)
    make_search(run.config, demo_space(), rungs).run()
    over = filled(find_run(run.path))
    assert drawn_points(over) == 12 + 6 + 3 + 1


def test_what_is_shown_is_renewed_until_the_run_is_finished(finished: SavedRun) -> None:
    summary, taken = finished.directory.summary, finished.summary["chosen"]["label"]
    there = summary.read_text()
    summary.unlink()
    run = filled(find_run(finished.path))
    assert "the model to take" not in trial_note(run, 0, taken)
    gone = threading.Event()
    renewing = threading.Thread(target=keep_current, args=(run, artifact_store(run), gone, 0.05), daemon=True)
    renewing.start()
    try:
        summary.write_text(there)
        renewing.join(60)
        assert not renewing.is_alive(), "it ends with the run"
    finally:
        gone.set()
    assert "the model to take" in trial_note(find_run(run.path), 0, taken)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "grpc"])
def test_storages_on_servers_hold_it_too(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    database, proxy = request.getfixturevalue("database"), None
    if kind == "grpc":
        proxy = Proxy(database)
        proxy.start()
        proxy.wait()
    try:
        run = at_work(tmp_path, database if proxy is None else f"grpc://127.0.0.1:{proxy.port}")
        found = filled(run)
        assert "straight after pruning" in get_note(found.studies[0])
        assert drawn_points(found) == 10
        app = guard(wsgi(found.studies[0]._storage, artifact_store=artifact_store(found)))
        with serving(app) as address:
            status, text = answered(f"{address}/api/studies/{found.studies[0]._study_id}?after=0")
            assert status == 200
            told = json.loads(text)
            assert told["note"]["body"] == get_note(found.studies[0])
            assert set(
                told["plotly_graph_objects"] and [one["id"] for one in told["plotly_graph_objects"]]
            ) == {
                "learning-curves",
                "pareto-front",
            }
    finally:
        if proxy is not None:
            proxy.stop()


def answered(address: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(address, method=method, headers=headers, data=b"{}" * (method != "GET"))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def serving(app: App) -> Iterator[str]:
    """The address of an application, served by this process."""
    with server_of(app, None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def served(run: SavedRun) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "search.dashboard.__main__", str(run.path)]
    pipe = subprocess.PIPE
    with WarmPopen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_command_serves_this_machine_until_it_is_stopped(tmp_path: Path) -> None:
    run = at_work(tmp_path)
    with served(run) as (process, address):
        assert address.startswith("http://127.0.0.1:"), process.stderr and process.stderr.read()
        status, text = answered(f"{address}api/studies")
        assert status == 200
        names = [study["study_name"] for study in json.loads(text)["study_summaries"]]
        assert names == ["synthetic/r0", "synthetic/r1", "synthetic/r2"]
        assert answered(f"{address}api/studies/0", "DELETE")[0] == 403
        assert answered(f"{address}api/studies", "POST")[0] == 403
        assert answered(f"{address}api/studies", Host="elsewhere.example")[0] == 403
        assert answered(f"{address}api/studies", Host="[")[0] == 403
        assert answered(f"{address}api/studies/0/note", "PUT", Origin="http://elsewhere.example")[0] == 403
        assert answered(f"{address}api/studies", Host="localhost:9")[0] == 200, "through a tunnel"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_port_that_is_taken_is_passed_over_unless_it_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at_work(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("search.dashboard.__main__.PORT", port)
        with server_of(guard(lambda environ, respond: []), None) as server:
            assert server.server_port > port
            assert server.server_address[0] == "127.0.0.1"
        assert main([str(run.path), "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("slimsearch: The dashboard needs a port that is free; 127.0.0.1:")
    assert err.count("\n") == 1
    assert main([str(run.path), "--port", "99999"]) == 2


def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = save_run(tmp_path)
    assert main([str(directory)]) == 2
    assert "study.journal is not there" in capsys.readouterr().err
    assert not (directory / "artifacts").exists()
