"""Model cards: the README.md of each written model, with its measurements, how to load it, and its licence.

The front matter is for the Hugging Face hub: the teacher as ``base_model``, its licence and language, the
text, and the measurements in the ``model-index`` form. Anything uncertain is left out.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from search.report.tables import distillation_rows, metric, score
from search.runs.trajectories import retrained_entries
from search.stages.provenance import TAG, Dataset, Provenance, licence_copies, read_provenance
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal import format as words

Entry = dict[str, Any]

_SNIPPET = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder}{options})
model = AutoModelForCausalLM.from_pretrained({folder}{options})
prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
answer = model.generate(prompt, max_new_tokens=64)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
```"""


def model_card(
    summary: dict[str, Any],
    label: str,
    provenance: Provenance,
    *,
    origin: str | None = None,
    own_code: bool = False,
) -> str:
    """Return the model card of the retrained model with a label.

    Args:
        summary: summary of the run, already checked.
        label: label of a promoted model, or of a baseline if no promoted model has it.
        provenance: the model's sources and licence.
        origin: the model's origin, needed where two models share a label: the chosen architecture trained
            from ``random-weights`` has the label of the chosen model.
        own_code: whether the model comes with code, which its users have to trust.

    Raises:
        KeyError: no retrained model of the run has this label and origin.
    """
    entries = [*summary["promoted"], *summary["baselines"]]
    named = (one for one in entries if one["label"] == label and origin in (None, one["origin"]))
    student = next(named, None)
    if student is None:
        raise KeyError(label)
    sections = (
        _front_matter(summary, student, label, provenance, ["pruning", "distillation"]),
        f"# {label}",
        _opening(summary, student),
        "## Numbers\n\n" + _numbers(summary, student),
        "## Beside the other models of the run\n\n" + _comparison(summary, student),
        "## Sizes\n\n" + _sizes(summary["teacher"]["architecture"], student["architecture"]),
        "## Use\n\nNothing but transformers is needed:\n\n" + _snippet(student, own_code),
        "## How it was made\n\n" + _making(summary, student),
        "## Licence\n\n" + _licence(provenance),
    )
    return "\n\n".join(sections) + "\n"


def corrected_card(summary: dict[str, Any], provenance: Provenance) -> str:
    """Return the model card of the corrected teacher of a run."""
    teacher = summary["teacher"]
    correction, name = teacher["correction"], PurePath(teacher["id"]).name or teacher["id"]
    sections = (
        _front_matter(summary, teacher, f"{name}-corrected", provenance, ["finetune"]),
        f"# {_cell(name)}, corrected",
        f"{_code(teacher['id'])}{_revision(teacher)}, trained by cross-entropy on {correction['tokens']:,} "
        f"tokens of {_code(summary['corpus']['id'])}, on whose validation split its loss went from "
        f"{words.nats(correction['loss_before'])} to {words.nats(correction['loss_after'])} nats per token. "
        "The models of its run were cut from it and taught by it.",
        "## Licence\n\n" + _licence(provenance),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(
    summary: dict[str, Any], entry: Entry, name: str, provenance: Provenance, tags: list[str]
) -> str:
    terms = provenance.terms
    # Of a mixture the losses are no data set's.
    dataset = (
        provenance.datasets[0] if len(provenance.datasets) == 1 and not summary["corpus"]["sources"] else None
    )
    data = ModelCardData(
        base_model=provenance.base_model,
        datasets=[one.id for one in provenance.datasets] or None,
        language=terms.language,
        license=terms.licence,  # type: ignore[arg-type]  # the hub takes several as well
        license_name=terms.licence_name,
        license_link=terms.licence_link,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG, *tags],
        model_name=name,
        eval_results=_results(summary, entry, dataset),
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(summary: dict[str, Any], student: Entry, dataset: Dataset | None) -> list[EvalResult] | None:
    """Return loss, perplexity, bits per byte and benchmarks as a model index; None if there is no loss."""
    loss, corpus = student["loss"], summary["corpus"]["id"]
    if loss is None:
        return None
    measured = {
        ("loss", "Validation loss, nats per token"): loss,
        ("perplexity", "Validation perplexity per token"): student["perplexity"],
        ("bits_per_byte", "Validation bits per byte"): student["bits_per_byte"],
    }
    on_text = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset.id if dataset else corpus,
            dataset_name=corpus,
            dataset_config=dataset.config if dataset else None,
            dataset_revision=dataset.revision if dataset else None,
            dataset_split="validation",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for (kind, name), value in measured.items()
        if value is not None
    ]
    return on_text + _benchmark_results(student)


def _benchmark_results(student: Entry) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            metric_type=found["metric"],
            metric_value=round(found["value"], 4),
        )
        for task, found in student["benchmarks"].items()
        if found["value"] is not None
    ]


def _opening(summary: dict[str, Any], student: Entry) -> str:
    teacher = summary["teacher"]
    share = words.percent(student["parameters"] / teacher["parameters"])
    return (
        f"A causal language model of {student['parameters']:,} parameters, {share} of its teacher "
        f"{_code(teacher['id'])}{_revision(teacher)}. Slimsearch found its sizes for a budget of "
        f"{summary['budget']['amount']:,} {summary['budget']['unit']}, cut it from the teacher and trained "
        "it on the teacher\u2019s predictions."
    )


def _revision(teacher: Entry) -> str:
    return f" (revision {_code(teacher['revision'])})" if teacher["revision"] else ""


def _numbers(summary: dict[str, Any], student: Entry) -> str:
    teacher = summary["teacher"]
    rows = [
        ("parameters", f"{student['parameters']:,}", f"{teacher['parameters']:,}"),
        ("loss, nats per token", words.nats(student["loss"]), words.nats(teacher["loss"])),
        ("perplexity per token", words.perplexity(student["loss"]), words.perplexity(teacher["loss"])),
        ("bits per byte", words.nats(student["bits_per_byte"]), words.nats(teacher["bits_per_byte"])),
        ("latency, ms", words.milliseconds(student["latency_ms"]), words.milliseconds(teacher["latency_ms"])),
        ("loss straight after pruning", words.nats(student["loss_after_pruning"]), ""),
        ("loss after short distillation", words.nats(student["loss_after_short_distillation"]), ""),
        *_source_rows(summary, student),
        *_benchmark_rows(student, teacher),
    ]
    measured = [row for row in rows if row[1] != words.DASH]
    device, corpus = _code(summary["device"]), _code(summary["corpus"]["id"])
    where = f"Measured on {device}, on the validation split of {corpus}.{_latency_words(summary)}"
    return _table(("", "this model", "teacher"), measured) + f"\n\n{where}"


def _source_rows(summary: dict[str, Any], student: Entry) -> list[tuple[str, str, str]]:
    """Return the losses on each text of a mixture."""
    sources, teacher = summary["corpus"]["sources"], summary["teacher"].get("source_losses", [])
    return [
        (
            f"loss on {_code(source['id'])}, {source['share']:.0%} of the tokens",
            words.nats(mine),
            words.nats(its),
        )
        for source, mine, its in zip(sources, student.get("source_losses", []), teacher, strict=False)
    ]


def _benchmark_rows(student: Entry, teacher: Entry) -> list[tuple[str, str, str]]:
    return [
        (f"{task}, {metric(task, [student, teacher])}", score(found), score(teacher["benchmarks"].get(task)))
        for task, found in student["benchmarks"].items()
    ]


def _latency_words(summary: dict[str, Any]) -> str:
    described = [one.get("description") for one in summary["objectives"] if one["name"] == "latency"]
    return f" Latency: {_cell(described[0])}." if described and described[0] else ""


def _comparison(summary: dict[str, Any], student: Entry) -> str:
    """Return a table of the run's retrained models by loss; those whose retraining failed come last."""
    entries = [entry for _, entry in retrained_entries(summary)]
    entries.sort(key=lambda entry: math.inf if entry["loss"] is None else float(entry["loss"]))
    rows = [
        (
            f"**{entry['label']}**" if _same(entry, student) else entry["label"],
            words.origin(entry["origin"]),
            words.count(entry["parameters"]),
            words.nats(entry["loss"]),
            words.milliseconds(entry["latency_ms"]),
        )
        for entry in entries
    ]
    head = ("model", "proposed by", "parameters", "loss, nats per token", "latency, ms")
    alike = len({entry["tokens"] for entry in entries}) == 1
    return _table(head, rows) + ("\n\nAll were trained on the same tokens." if alike else "")


def _same(one: Entry, other: Entry) -> bool:
    return (one["label"], one["origin"]) == (other["label"], other["origin"])


def _sizes(teacher: Entry, student: Entry) -> str:
    names = {**words.AXES, "layers": "layers"}
    rows = [(name, str(student[key]), str(teacher[key])) for key, name in names.items() if key in teacher]
    kept = words.layer_ranges(student["kept_layers"])
    return (
        _table(("axis", "this model", "teacher"), rows) + f"\n\nLayers of the teacher that it keeps: {kept}."
    )


def _snippet(student: Entry, own_code: bool) -> str:
    folder = json.dumps(student["path"] or student["label"], ensure_ascii=False)
    return _SNIPPET.format(folder=folder, options=", trust_remote_code=True" if own_code else "")


def _making(summary: dict[str, Any], student: Entry) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
    how = "".join(f"- {name}: {_cell(text)}\n" for name, text in distillation_rows(summary))
    note = f"- note: {_cell(student['note'])}\n" if student["note"] else ""
    rate = f"- peak learning rate: {student['peak_rate']:.3g}\n" if "peak_rate" in student else ""
    return (
        f"- distillation: {student['tokens']:,} tokens, in {words.duration(student['seconds'])}\n"
        f"{rate}{how}{note}"
        f"- text: {_code(summary['corpus']['id'])}, fingerprint {_code(summary['corpus']['fingerprint'])}\n"
        f"- command: {_code(summary['command'])}\n"
        f"- versions: {_cell(versions)}"
    )


def _licence(provenance: Provenance) -> str:
    terms = provenance.terms
    stated = [terms.licence] if isinstance(terms.licence, str) else list(terms.licence or ())
    if terms.licence_name:
        stated.append(terms.licence_name)
    beside = ", ".join(_code(name) for name in provenance.files)
    texts = f" The teacher\u2019s files {beside} lie beside this one." if beside else ""
    if not stated:
        return (
            "The teacher\u2019s card states no licence, so this one states none. Before the model is passed "
            f"on, find out under which terms the teacher may be.{texts}"
        )
    named = " ".join(_code(name) for name in stated)
    return (
        f"The teacher\u2019s, carried over: {named}.{texts} It may ask for more of models that are derived "
        "from it, such as a name or a notice; read it before the model is passed on."
    )


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Put text on one line, and escape it for a Markdown table and HTML."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """Format text as a code span, in which Markdown and HTML have no effect."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return fence + pad + re.sub(r"\s+", " ", text) + pad + fence


def write_cards(summary: dict[str, Any], run: Path) -> None:
    """Write a README.md and copies of the licence files beside every model of a run.

    These are the models that the summary names, and the corrected teacher if there is one.

    Args:
        summary: summary of the run, already checked.
        run: run directory, with the models and the files of ``save_provenance``.

    Raises:
        OSError: the disk is full.
    """
    provenance = read_provenance(run)
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            folder = run / entry["path"]
            code = any(folder.glob("*.py"))
            card = model_card(summary, entry["label"], provenance, origin=entry["origin"], own_code=code)
            _write(folder, card, licence_copies(run, provenance))
    corrected = RunDirectory(run).corrected_teacher
    if summary["teacher"]["correction"] and corrected.is_dir():
        _write(corrected, corrected_card(summary, provenance), licence_copies(run, provenance))


def _write(model: Path, card: str, licence: Sequence[Path]) -> None:
    for file in licence:
        shutil.copyfile(file, model / file.name)
    atomic_write(model / "README.md", card)
