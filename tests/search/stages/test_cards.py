"""Cards are written from a summary and the run alone; what they say of the origin is what is certain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from huggingface_hub import ModelCard, ModelCardData

from evaluators.corpus.layout import Layout
from evaluators.teacher import Teacher
from search.stages.model_card import write_cards
from search.stages.provenance import Dataset, read_provenance, save_provenance
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS

TERMS = "license: other\nlicense_name: teacher-terms\nlicense_link: LICENSE\nlanguage: en"


def teacher_in(folder: Path, front: str = TERMS, id: str | None = None) -> Teacher:
    """A teacher with a card and the files of a licence."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    (folder / "LICENSE").write_text("You may.")
    (folder / "NOTICE").write_text("Name us.")
    return cast(Teacher, SimpleNamespace(id=id or str(folder), directory=folder))


def run_of(teacher: Teacher, folder: Path, data: str = "org/text@v2:part") -> tuple[Path, dict[str, Any]]:
    """A run with the folders of its models, as it stands before the cards."""
    summary = sample_summary()
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            (folder / entry["path"]).mkdir(parents=True)
    save_provenance(teacher, [data], Layout(after=0), folder)
    return folder, summary


def front(model: Path) -> ModelCardData:
    card = ModelCard.load(model / "README.md", ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    return card.data


def test_every_model_has_a_card_and_the_files_that_the_licence_is_in(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path / "snapshot", id="org/teacher")
    run, summary = run_of(teacher, tmp_path / "run")
    for file in teacher.directory.iterdir():  # the run has kept what it needs
        file.unlink()
    write_cards(summary, run)
    models = sorted((run / "models").iterdir())
    assert len(models) == sum(bool(one["path"]) for one in (*summary["promoted"], *summary["baselines"]))
    for model in models:
        data = front(model)
        assert (data.license, data.license_name, data.license_link) == ("other", "teacher-terms", "LICENSE")
        assert (data.base_model, data.datasets, data.language) == ("org/teacher", ["org/text"], "en")
        assert (model / "LICENSE").read_text() == "You may."
        assert (model / "NOTICE").read_text() == "Name us."


def test_a_corrected_teacher_has_its_own_card(tmp_path: Path) -> None:
    run, _ = run_of(teacher_in(tmp_path / "snapshot", id="org/teacher"), tmp_path / "run")
    summary = VARIANTS["everything_asked"]()
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            (run / entry["path"]).mkdir(parents=True, exist_ok=True)
    (run / "teacher").mkdir()
    write_cards(summary, run)
    data = front(run / "teacher")
    assert (data.base_model, data.license_name) == ("org/teacher", "teacher-terms")
    losses = {one.metric_type: one.metric_value for one in data.eval_results or []}
    assert losses["loss"] == pytest.approx(summary["teacher"]["loss"], abs=1e-4)
    assert (run / "teacher" / "LICENSE").is_file()
    told = (run / "teacher" / "README.md").read_text()
    assert f"{summary['teacher']['correction']['tokens']:,} tokens" in told


@pytest.mark.parametrize(
    ("where", "data", "wanted"),
    [
        ("org/text", "stdlib", None),
        ("org/text", "org/text", Dataset("org/text", None, None)),
        ("org/text", "org/text@main:part", Dataset("org/text", "main", "part")),
        ("org/text.txt", "org/text.txt", None),
    ],
)
def test_the_text_is_a_data_set_only_where_it_was_one(
    where: str, data: str, wanted: Dataset | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if where.endswith(".txt"):
        (tmp_path / "org").mkdir()
        (tmp_path / where).write_text("a text\n")
    run, _ = run_of(teacher_in(tmp_path / "teacher"), tmp_path / "run", data)
    assert read_provenance(run).datasets == ((wanted,) if wanted else ())


class TestBaseModel:
    def test_a_folder_is_none_even_if_its_path_looks_like_an_id(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        teacher = teacher_in(tmp_path / "org" / "teacher", f"{TERMS}\nbase_model: org/base", "org/teacher")
        run, _ = run_of(teacher, tmp_path / "run")
        assert read_provenance(run).base_model is None

    def test_a_model_that_a_run_wrote_has_that_of_its_own_teacher(self, tmp_path: Path) -> None:
        """As in a family; licence, its files and language come down to the second model too."""
        run, summary = run_of(teacher_in(tmp_path / "snapshot", id="org/teacher"), tmp_path / "first")
        write_cards(summary, run)
        chosen = run / summary["promoted"][0]["path"]
        second, summary = run_of(
            cast(Teacher, SimpleNamespace(id=str(chosen), directory=chosen)), tmp_path / "second"
        )
        write_cards(summary, second)
        data = front(second / summary["promoted"][0]["path"])
        assert (data.base_model, data.license_name, data.language) == ("org/teacher", "teacher-terms", "en")
        assert (second / summary["promoted"][0]["path"] / "NOTICE").is_file()


def test_a_run_from_before_knows_nothing_of_its_origin(tmp_path: Path) -> None:
    run, summary = run_of(teacher_in(tmp_path / "teacher"), tmp_path / "run")
    (run / "terms" / "provenance.json").unlink()
    write_cards(summary, run)
    data = front(run / summary["promoted"][0]["path"])
    assert (data.base_model, data.license, data.datasets) == (None, None, None)
