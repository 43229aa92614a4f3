"""The model cards of a run, and the files of the licence beside each model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.stages.model_card import corrected_card, model_card
from search.stages.provenance import kept_files, read_provenance
from search.storage.run_directory import RunDirectory
from search.storage.whole_file import write_whole


def write_cards(summary: dict[str, Any], run: Path) -> None:
    """Write a README.md beside every model of a run, and what its licence asks to be passed on.

    These are the models that the summary names, and the corrected teacher, if it was corrected.

    Args:
        summary: of the run, checked.
        run: its directory, with the models and what ``keep_provenance`` left there.

    Raises:
        OSError: the disk is full.
    """
    provenance = read_provenance(run)
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            card = model_card(summary, entry["label"], provenance, origin=entry["origin"])
            _write(run / entry["path"], card, kept_files(run, provenance))
    corrected = RunDirectory(run).corrected_teacher
    if summary["teacher"]["correction"] and corrected.is_dir():
        _write(corrected, corrected_card(summary, provenance), kept_files(run, provenance))


def _write(model: Path, card: str, licence: Sequence[Path]) -> None:
    for file in licence:
        shutil.copyfile(file, model / file.name)
    write_whole(model / "README.md", card)
