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

from search.report.figures.curves import curves_figure
from search.report.figures.figure import plain
from search.report.figures.front import front_figure
from search.report.figures.plotly_object import plotly_object
from search.runs.live import SavedTrial, saved_trials, summary_so_far
from search.runs.saved_run import SavedRun
from search.runs.summary import bounds_of
from search.runs.trajectories import retrained_entries
from search.settings.config import RunConfig
from search.settings.objectives import bounds_in_words
from search.terminal import format as words

Entry = dict[str, Any]


def rung_note(config: RunConfig, summary: Entry, rung: int, pages: dict[str, str], figures: str) -> str:
    """What a rung is, what is made small at it, and how far it foretells the next.

    Args:
        config: of the run.
        summary: of the run, or what is known so far.
        rung: its number.
        pages: address of the trial's page by label, of the retrained models that have a trial here.
        figures: address of the study that has the figures; empty if it is this one.
    """
    units = ", ".join(f"{one['name']} ({one['unit']})" for one in summary["objectives"])
    lines = [
        f"## Rung {rung} of {_plain(config.name)}",
        "",
        _what(config, rung),
        "",
        f"- Made small: {units}",
    ]
    lines += [f"- {one['name']}: {one['description']}" for one in summary["objectives"] if _told(one)]
    if bounds := bounds_of(summary):
        lines.append(
            f"- Bounds: {bounds_in_words(bounds)}; what is over one is not distilled, and goes no further"
        )
    lines += [f"- {line}" for line in _foresight(summary, rung)]
    if figures:
        lines.append(f"- Pareto front and learning curves of the run: [rung 0]({figures})")
    if chosen := summary["chosen"]:
        lines.append(f"- To take: {_link(chosen['label'], pages)}: {_plain(chosen['reason'])}")
    if pages:
        lines += ["", f"Retrained: {', '.join(_link(label, pages) for label in pages)}"]
    return "\n".join(lines)


def model_note(summary: Entry, student: Entry, path: str | None, card: str | None) -> str:
    """What became of a candidate that was retrained.

    Args:
        summary: of the run, or what is known so far.
        student: its entry.
        path: where the model lies.
        card: address of its model card.
    """
    teacher, chosen = summary["teacher"], summary["chosen"]
    taken = chosen is not None and chosen["label"] == student["label"]
    share = words.percent(student["parameters"] / teacher["parameters"]) if teacher["parameters"] else ""
    lines = [
        f"## {_plain(student['label'])}{': the model to take' if taken else ''}",
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
        lines.append(f"- {'Chosen' if taken else 'Not chosen'}: {_why(summary, student, taken)}")
    if student["failure"]:
        lines.append(f"- Retraining failed: {_plain(student['failure'])}")
    if path:
        lines.append(f"- Model: `{path}`")
    if card:
        lines.append(f"- [Model card]({card})")
    return "\n".join(lines)


def _what(config: RunConfig, rung: int) -> str:
    if rung == 0:
        return "The loss of each candidate straight after pruning. Nothing is trained."
    tokens = config.rung_tokens[rung - 1]
    onward = config.schedule == "wsd" and rung > 1
    start = "on from where the rung below had come to" if onward else "from its pruned weights"
    return f"Each candidate is distilled for {tokens:,} tokens, {start}, over the same batches for all."


def _told(objective: Entry) -> bool:
    return bool(objective.get("description"))


def _foresight(summary: Entry, rung: int) -> list[str]:
    """How far the order here is the order at the next rung and after retraining."""
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
    mine = [trial for trial in summary["trials"] if trial["label"] == student["label"]]
    rows = [
        f"| rung {trial['rung']} | {trial['tokens']:,} | {words.nats(trial['loss'], 4)} |"
        for trial in sorted(mine, key=lambda trial: int(trial["rung"]))
        if trial["loss"] is not None
    ]
    retrained = f"| retraining | {student['tokens']:,} | **{words.nats(student['loss'], 4)}** |"
    return [*rows, retrained, f"| teacher | | {words.nats(summary['teacher']['loss'], 4)} |"]


def _why(summary: Entry, student: Entry, taken: bool) -> str:
    if taken:
        return _plain(summary["chosen"]["reason"])
    entries = [entry for _, entry in retrained_entries(summary)]
    best = next(entry for entry in entries if entry["label"] == summary["chosen"]["label"])
    if student["loss"] is None or best["loss"] is None:
        return f"{best['label']} is"
    gap = student["loss"] - best["loss"]
    compared = f"its loss is {words.nats(abs(gap), 4)} nats {'higher' if gap >= 0 else 'lower'}"
    return f"{compared} than that of {best['label']}"


def _link(label: str, pages: dict[str, str]) -> str:
    return f"[{label}]({pages[label]})" if label in pages else label


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to do, on one line."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))


#: Below it a study keeps digests of what was written, so that what a person wrote is known from it.
_WRITTEN = "slimsearch:written:"


def write_content(run: SavedRun, store: FileSystemArtifactStore) -> None:
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
