"""What a run puts into the dashboard: notes, figures and model cards, written into its studies.

A finished trial takes no more attributes, but the dashboard keeps notes of trials with their study. All is
written only where it has changed; a note that a person has edited is left alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from search.dashboard.dashboard_notes import model_note, rung_note
from search.report.figures.curves import curves_figure
from search.report.figures.figure import plain
from search.report.figures.front import front_figure
from search.report.figures.plotly_object import plotly_object
from search.runs.journeys import retrained_entries
from search.runs.live import summary_so_far
from search.runs.saved_run import SavedRun
from search.runs.saved_trials import SavedTrial, saved_trials

Entry = dict[str, Any]
#: Below it a study keeps digests of what was written, so that what a person wrote is known from it.
_WRITTEN = "slimsearch:written:"


def fill(run: SavedRun, store: FileSystemArtifactStore) -> None:
    """Bring notes, figures and model cards up to date.

    Args:
        run: finished or not.
        store: of the run's artifacts.

    Raises:
        InputError: the summary of the run or its storage cannot be read.
    """
    summary, trials = summary_so_far(run), saved_trials(run)
    _draw(run, summary)
    cards = {entry["label"]: _card(run, entry, store) for entry in _retrained(summary)}
    for rung, study in enumerate(run.studies):
        here = {trial.label: trial for trial in trials if trial.rung == rung}
        pages = {
            entry["label"]: _page(study, here[entry["label"]])
            for entry in _retrained(summary)
            if entry["label"] in here
        }
        figures = f"/dashboard/studies/{run.studies[0]._study_id}" if rung else ""
        _note(study, None, rung_note(run.config, summary, rung, pages, figures))
        for entry in _retrained(summary):
            if entry["label"] in here:
                path = str(run.path / entry["path"]) if entry["path"] else None
                _note(study, here[entry["label"]], model_note(summary, entry, path, cards[entry["label"]]))


def _retrained(summary: Entry) -> list[Entry]:
    """The models that came of a trial: all but that from random weights."""
    return [entry for _, entry in retrained_entries(summary) if entry["origin"] != "random-weights"]


def _page(study: optuna.Study, trial: SavedTrial) -> str:
    return f"/dashboard/studies/{study._study_id}/trials?numbers={trial.number}"


def _note(study: optuna.Study, trial: SavedTrial | None, body: str) -> None:
    """Write a note, unless it is there already or a person has written one."""
    owner = study if trial is None else Trial(study, trial.storage_id)
    there = get_note(owner)
    if there == body:
        return
    key = f"note:{'study' if trial is None else trial.storage_id}"
    if there and _written(study).get(key) != _digest(there):
        return
    save_note(owner, body)
    _remember(study, key, body)


def _written(study: optuna.Study) -> dict[str, str]:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {
        key.removeprefix(_WRITTEN): digest for key, digest in attributes.items() if key.startswith(_WRITTEN)
    }


def _remember(study: optuna.Study, key: str, text: str) -> None:
    study._storage.set_study_system_attr(study._study_id, _WRITTEN + key, _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _draw(run: SavedRun, summary: Entry) -> None:
    """The Pareto front and the learning curves, on the study of rung 0."""
    if summary["teacher"]["loss"] is None:
        return
    study = run.studies[0]
    for name, figure, title in (
        ("pareto-front", front_figure(summary), "Pareto front"),
        ("learning-curves", curves_figure(summary), "Loss by rung and in retraining"),
    ):
        if figure is None:
            continue
        drawn = plotly_object(figure, f"{title} of {plain(summary['name'])}")
        text = drawn.to_json()
        if _written(study).get(f"figure:{name}") != _digest(text):
            save_plotly_graph_object(study, drawn, graph_object_id=name)
            _remember(study, f"figure:{name}", text)


def _card(run: SavedRun, entry: Entry, store: FileSystemArtifactStore) -> str | None:
    """The address of a model's card, an artifact of the study of rung 0; there once, and kept up to date."""
    card = run.path / (entry["path"] or "") / "README.md"
    if not entry["path"] or not card.exists():
        return None
    study, name = run.studies[0], f"{entry['label']}.md"
    known = dict(_artifacts(study))
    if name not in known:
        copy = run.path / "artifacts" / name
        copy.write_bytes(card.read_bytes())
        try:
            known[name] = upload_artifact(
                artifact_store=store,
                file_path=str(copy),
                study_or_trial=study,
                mimetype="text/plain; charset=utf-8",
            )
        finally:
            copy.unlink()
    else:
        store.write(known[name], io.BytesIO(card.read_bytes()))
    return f"/artifacts/{study._study_id}/{known[name]}"


def _artifacts(study: optuna.Study) -> Iterator[tuple[str, str]]:
    """File names and ids of a study's artifacts, but those that were deleted in the dashboard.

    ``optuna.artifacts.get_all_artifact_meta`` cannot read a study of which one was.
    """
    for key, text in study._storage.get_study_system_attrs(study._study_id).items():
        if key.startswith("artifacts:") and (about := json.loads(text)) is not None:
            yield about["filename"], about["artifact_id"]
