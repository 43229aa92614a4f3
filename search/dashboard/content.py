"""Write a run's notes, figures and model cards into its Optuna studies, where the dashboard shows them.

Optuna forbids new attributes on finished trials, but the dashboard stores the notes of trials with their
study. Only changed content is written, and a note that a user has edited is left alone.
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

from search.report.figures.curves import curves_figure
from search.report.figures.figure import plain
from search.report.figures.front import front_figure
from search.report.figures.plotly_object import plotly_object
from search.runs.live import SavedTrial, saved_trials, summary_so_far
from search.runs.saved_run import SavedRun
from search.runs.summary import bounds_of
from search.runs.trajectories import retrained_entries
from search.settings.config import NESTED, RunConfig
from search.settings.objectives import bounds_in_words
from search.terminal import format as words

Entry = dict[str, Any]
#: Prefix of study attributes with digests of the content written here, which reveal what a user has edited.
_WRITTEN = "slimsearch:written:"


def rung_note(config: RunConfig, summary: Entry, rung: int, pages: dict[str, str], figures: str) -> str:
    """Return the note of a rung: what it evaluates and minimises, and how well it predicts the next.

    Args:
        config: configuration of the run.
        summary: summary of the run, or what is known of it so far.
        rung: number of the rung.
        pages: URL of the trial's page by label, for the retrained models that have a trial at this rung.
        figures: URL of the study that holds the figures; empty if it is this one.
    """
    units = ", ".join(f"{one['name']} ({one['unit']})" for one in summary["objectives"])
    lines = [
        f"## Rung {rung} of {_escape_markdown(config.name)}",
        "",
        _describe(config, rung),
        "",
        f"- Made small: {units}",
    ]
    described = [one for one in summary["objectives"] if one.get("description")]
    lines += [f"- {one['name']}: {one['description']}" for one in described]
    if bounds := bounds_of(summary):
        lines.append(
            f"- Bounds: {bounds_in_words(bounds)}; what is over one is not distilled, and goes no further"
        )
    lines += [f"- {line}" for line in _foresight(summary, rung)]
    if figures:
        lines.append(f"- Pareto front and learning curves of the run: [rung 0]({figures})")
    if chosen := summary["chosen"]:
        lines.append(f"- To take: {_link(chosen['label'], pages)}: {_escape_markdown(chosen['reason'])}")
    if pages:
        lines += ["", f"Retrained: {', '.join(_link(label, pages) for label in pages)}"]
    return "\n".join(lines)


def model_note(summary: Entry, student: Entry, path: str | None, card: str | None) -> str:
    """Return the note of a retrained model: its sizes, losses and latency, and whether it was chosen.

    Args:
        summary: summary of the run, or what is known of it so far.
        student: entry of the model.
        path: directory of the model; None if it was not kept.
        card: URL of the model card; None if there is none.
    """
    teacher, chosen = summary["teacher"], summary["chosen"]
    taken = chosen is not None and chosen["label"] == student["label"]
    share = words.percent(student["parameters"] / teacher["parameters"]) if teacher["parameters"] else ""
    lines = [
        f"## {_escape_markdown(student['label'])}{': the model to take' if taken else ''}",
        "",
        f"{words.sizes(student['architecture'], teacher['architecture']['layers'])}; layers "
        f"{words.layer_ranges(student['architecture']['kept_layers'])} of the teacher. "
        f"{student['parameters']:,} parameters{f', {share} of the teacher' if share else ''}. "
        f"Proposed by: {words.origin(student['origin'])}.",
        "",
        "| | \u2003tokens | \u2003loss, nats/token |",
        "|---|--:|--:|",
        *_losses(summary, student),
        "",
    ]
    if student["latency_ms"] is not None:
        beside = f", the teacher {words.milliseconds(teacher['latency_ms'])} ms"
        lines.append(f"- Latency: {words.milliseconds(student['latency_ms'])} ms{beside}")
    if chosen is not None:
        lines.append(f"- {'Chosen' if taken else 'Not chosen'}: {_reason(summary, student, taken)}")
    if student["failure"]:
        lines.append(f"- Retraining failed: {_escape_markdown(student['failure'])}")
    if path:
        lines.append(f"- Model: `{path}`")
    if card:
        lines.append(f"- [Model card]({card})")
    return "\n".join(lines)


def _describe(config: RunConfig, rung: int) -> str:
    if rung == 0:
        return "The loss of each candidate straight after pruning. Nothing is trained."
    tokens = config.rung_tokens[rung - 1]
    if config.search == NESTED:
        return (
            f"Each candidate is scored as a slice of weights that all share, trained for {tokens:,} tokens."
        )
    onward = config.schedule == "wsd" and rung > 1
    start = "on from where the rung below had come to" if onward else "from its pruned weights"
    return f"Each candidate is distilled for {tokens:,} tokens, {start}, over the same batches for all."


def _foresight(summary: Entry, rung: int) -> list[str]:
    """Return Kendall's τ between this rung and the next, and between this rung and retraining, in words."""
    pairs = {(one["from"], one["to"]): one for one in summary.get("rank_correlation", ())}
    found = []
    for stage in (f"rung {rung + 1}", "retraining"):
        pair = pairs.get((f"rung {rung}", stage))
        if pair is not None and pair["kendall_tau"] is not None:
            tau = words.signed(pair["kendall_tau"], 2)
            found.append(
                f"Kendall's τ with the order at {stage}: {tau}, over {pair['candidates']} candidates"
            )
    return found


def _losses(summary: Entry, student: Entry) -> list[str]:
    """Return Markdown table rows: the student's loss by stage, then the teacher's."""
    own_trials = [trial for trial in summary["trials"] if trial["label"] == student["label"]]
    rows = [
        f"| rung {trial['rung']} | {trial['tokens']:,} | {words.nats(trial['loss'], 4)} |"
        for trial in sorted(own_trials, key=lambda trial: int(trial["rung"]))
        if trial["loss"] is not None
    ]
    retrained = f"| retraining | {student['tokens']:,} | **{words.nats(student['loss'], 4)}** |"
    return [*rows, retrained, f"| teacher | | {words.nats(summary['teacher']['loss'], 4)} |"]


def _reason(summary: Entry, student: Entry, taken: bool) -> str:
    if taken:
        return _escape_markdown(summary["chosen"]["reason"])
    entries = [entry for _, entry in retrained_entries(summary)]
    best = next(entry for entry in entries if entry["label"] == summary["chosen"]["label"])
    if student["loss"] is None or best["loss"] is None:
        return f"{best['label']} is"
    gap = student["loss"] - best["loss"]
    compared = f"its loss is {words.nats(abs(gap), 4)} nats {'higher' if gap >= 0 else 'lower'}"
    return f"{compared} than that of {best['label']}"


def _link(label: str, pages: dict[str, str]) -> str:
    return f"[{label}]({pages[label]})" if label in pages else label


def _escape_markdown(text: str) -> str:
    """Return the text on one line, with characters that Markdown interprets escaped."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))


def write_content(run: SavedRun, store: FileSystemArtifactStore) -> None:
    """Bring notes, figures and model cards up to date.

    Args:
        run: the run, finished or not.
        store: the run's artifacts.

    Raises:
        InputError: the summary or the storage of the run cannot be read.
    """
    summary, trials = summary_so_far(run), saved_trials(run)
    _save_figures(run, summary)
    cards = {entry["label"]: _save_card(run, entry, store) for entry in _retrained(summary)}
    for rung, study in enumerate(run.studies):
        at_rung = {trial.label: trial for trial in trials if trial.rung == rung}
        pages = {
            entry["label"]: _page(study, at_rung[entry["label"]])
            for entry in _retrained(summary)
            if entry["label"] in at_rung
        }
        figures = f"/dashboard/studies/{run.studies[0]._study_id}" if rung else ""
        _save_note(study, None, rung_note(run.config, summary, rung, pages, figures))
        for entry in _retrained(summary):
            if entry["label"] in at_rung:
                path = str(run.path / entry["path"]) if entry["path"] else None
                note = model_note(summary, entry, path, cards[entry["label"]])
                _save_note(study, at_rung[entry["label"]], note)


def _retrained(summary: Entry) -> list[Entry]:
    """Return the retrained models except the one from random weights, which has no trial."""
    return [entry for _, entry in retrained_entries(summary) if entry["origin"] != "random-weights"]


def _page(study: optuna.Study, trial: SavedTrial) -> str:
    return f"/dashboard/studies/{study._study_id}/trials?numbers={trial.number}"


def _save_note(study: optuna.Study, trial: SavedTrial | None, body: str) -> None:
    """Write the note of a trial, or of the study; skip it if it is unchanged or a user has edited it."""
    owner = study if trial is None else Trial(study, trial.storage_id)
    current = get_note(owner)
    if current == body:
        return
    key = f"note:{'study' if trial is None else trial.storage_id}"
    if current and _digests(study).get(key) != _digest(current):
        return
    save_note(owner, body)
    _save_digest(study, key, body)


def _digests(study: optuna.Study) -> dict[str, str]:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {
        key.removeprefix(_WRITTEN): digest for key, digest in attributes.items() if key.startswith(_WRITTEN)
    }


def _save_digest(study: optuna.Study, key: str, text: str) -> None:
    study._storage.set_study_system_attr(study._study_id, _WRITTEN + key, _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _save_figures(run: SavedRun, summary: Entry) -> None:
    """Save the Pareto front and the learning curves to the study of rung 0."""
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
        if _digests(study).get(f"figure:{name}") != _digest(text):
            save_plotly_graph_object(study, drawn, graph_object_id=name)
            _save_digest(study, f"figure:{name}", text)


def _save_card(run: SavedRun, entry: Entry, store: FileSystemArtifactStore) -> str | None:
    """Upload or update a model card as an artifact of the study of rung 0; return its URL."""
    card = run.path / (entry["path"] or "") / "README.md"
    if not entry["path"] or not card.exists():
        return None
    study, name = run.studies[0], f"{entry['label']}.md"
    uploaded = dict(_artifacts(study))
    if name not in uploaded:
        copy = run.path / "artifacts" / name
        copy.write_bytes(card.read_bytes())
        try:
            uploaded[name] = upload_artifact(
                artifact_store=store,
                file_path=str(copy),
                study_or_trial=study,
                mimetype="text/plain; charset=utf-8",
            )
        finally:
            copy.unlink()
    else:
        store.write(uploaded[name], io.BytesIO(card.read_bytes()))
    return f"/artifacts/{study._study_id}/{uploaded[name]}"


def _artifacts(study: optuna.Study) -> Iterator[tuple[str, str]]:
    """Yield file names and ids of a study's artifacts, except those deleted in the dashboard.

    ``optuna.artifacts.get_all_artifact_meta`` fails on a study with a deleted artifact.
    """
    for key, text in study._storage.get_study_system_attrs(study._study_id).items():
        if key.startswith("artifacts:") and (metadata := json.loads(text)) is not None:
            yield metadata["filename"], metadata["artifact_id"]
