"""Provenance of a run's models, for their cards: teacher, data set and licence; saved with the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluators.corpus.layout import Layout
from evaluators.corpus.mixture import parse_data
from evaluators.corpus.sources import hub_text
from evaluators.teacher import Teacher
from evaluators.teacher.writing import Terms, licence_files, read_terms
from search.storage.run_directory import atomic_write

#: Tag of the model cards that a run writes.
TAG = "slimsearch"
_FOLDER, _FILE = "terms", "provenance.json"


@dataclass(frozen=True)
class Dataset:
    """A data set on the Hugging Face hub."""

    id: str
    revision: str | None
    config: str | None


@dataclass(frozen=True)
class Provenance:
    """The sources of a model for the front matter of its card; anything uncertain is left out.

    Attributes:
        base_model: the teacher's id on the hub; if a run wrote the teacher, the id of the first teacher.
        terms: licence, language and tags of the teacher.
        datasets: the texts that are data sets on the hub.
        files: names of the licence files.
        layout: how documents lay in the blocks that the models learnt from.
    """

    base_model: str | None = None
    terms: Terms = field(default_factory=Terms)
    datasets: tuple[Dataset, ...] = ()
    files: tuple[str, ...] = ()
    layout: Layout | None = None


def save_provenance(teacher: Teacher, data: Sequence[str], layout: Layout, run: Path) -> None:
    """Save the provenance of a run's models, with copies of the teacher's licence files.

    Args:
        teacher: teacher of the run.
        data: the texts, as the user named them.
        layout: how their documents lie in blocks.
        run: run directory.

    Raises:
        OSError: the disk is full.
    """
    folder, licences = run / _FOLDER, licence_files(teacher.directory)
    folder.mkdir(exist_ok=True)
    for file in licences:
        shutil.copyfile(file, folder / file.name)
    texts = [text for one in parse_data(data) if (text := hub_text(one.data)) is not None]
    terms = read_terms(teacher.directory)
    found = Provenance(
        base_model=_base_model(teacher, terms),
        terms=terms,
        datasets=tuple(Dataset(text.wanted.id, text.wanted.revision, text.config) for text in texts),
        files=tuple(file.name for file in licences),
        layout=layout,
    )
    atomic_write(folder / _FILE, json.dumps(asdict(found), indent=1))


def read_provenance(run: Path) -> Provenance:
    """Read what ``save_provenance`` wrote; a run without it has an empty provenance."""
    path = run / _FOLDER / _FILE
    if not path.exists():
        return Provenance()
    found = json.loads(path.read_text(encoding="utf-8"))
    return Provenance(
        base_model=found["base_model"],
        terms=Terms(**found["terms"]),
        datasets=tuple(Dataset(**one) for one in found["datasets"]),
        files=tuple(found["files"]),
        layout=Layout(**found["layout"]),
    )


def licence_copies(run: Path, provenance: Provenance) -> list[Path]:
    """Return the paths of the copied licence files."""
    return [run / _FOLDER / name for name in provenance.files]


def _base_model(teacher: Teacher, terms: Terms) -> str | None:
    """Return the hub id if it is certain; that of a local folder only if a run wrote the folder."""
    if not Path(teacher.id).expanduser().is_dir():
        return teacher.id
    written_here = TAG in (terms.tags or ())
    return terms.base_model if written_here and isinstance(terms.base_model, str) else None
