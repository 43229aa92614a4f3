"""Where a run's models come from and under which terms, kept in the run for its model cards."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluators.corpus.sources import hub_text
from evaluators.teacher import Teacher
from evaluators.teacher.writing import Terms, licence_files, read_terms
from search.storage.run_directory import atomic_write

#: That a model card carries which a run wrote.
TAG = "slimsearch"
_FOLDER, _FILE = "terms", "provenance.json"


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub."""

    id: str
    revision: str | None
    config: str | None


@dataclass(frozen=True)
class Provenance:
    """What the front matter of a card says of where the model is from; of what is not certain, nothing.

    Attributes:
        base_model: the teacher's id on the hub; of a model that a run wrote, that of the first teacher.
        terms: of the teacher.
        dataset: the text, if it is one of the hub.
        files: names of the licence's files.
    """

    base_model: str | None = None
    terms: Terms = field(default_factory=Terms)
    dataset: Dataset | None = None
    files: tuple[str, ...] = ()


def save_provenance(teacher: Teacher, data: str, run: Path) -> None:
    """Write down where the models of a run come from, with copies of the files of the teacher's licence.

    Args:
        teacher: of the run.
        data: the text, as the user named it.
        run: directory of the run.

    Raises:
        OSError: the disk is full.
    """
    folder, beside = run / _FOLDER, licence_files(teacher.directory)
    folder.mkdir(exist_ok=True)
    for file in beside:
        shutil.copyfile(file, folder / file.name)
    text = hub_text(data)
    terms = read_terms(teacher.directory)
    found = Provenance(
        base_model=_base_model(teacher, terms),
        terms=terms,
        dataset=Dataset(text.wanted.id, text.wanted.revision, text.config) if text else None,
        files=tuple(file.name for file in beside),
    )
    atomic_write(folder / _FILE, json.dumps(asdict(found), indent=1))


def read_provenance(run: Path) -> Provenance:
    """What ``save_provenance`` wrote down; of a run without it, that nothing is known."""
    path = run / _FOLDER / _FILE
    if not path.exists():
        return Provenance()
    found = json.loads(path.read_text(encoding="utf-8"))
    return Provenance(
        base_model=found["base_model"],
        terms=Terms(**found["terms"]),
        dataset=Dataset(**found["dataset"]) if found["dataset"] else None,
        files=tuple(found["files"]),
    )


def licence_copies(run: Path, provenance: Provenance) -> list[Path]:
    """The copies of the files of the teacher's licence."""
    return [run / _FOLDER / name for name in provenance.files]


def _base_model(teacher: Teacher, terms: Terms) -> str | None:
    """The hub id if that is certain: a folder may hold anything, unless a run wrote it and said so."""
    if not Path(teacher.id).expanduser().is_dir():
        return teacher.id
    written_here = TAG in (terms.tags or ())
    return terms.base_model if written_here and isinstance(terms.base_model, str) else None
