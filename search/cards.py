"""The model cards of a run, and the files of the licence beside each model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from search.model_card import model_card
from search.provenance import kept_files, read_provenance
from search.whole_file import write_whole


def write_cards(summary: dict[str, Any], run: Path) -> None:
    """Write a README.md beside every model that a summary names, and what its licence asks to be passed on.

    Args:
        summary: of the run, checked.
        run: its directory, with the models and what ``keep_provenance`` left there.

    Raises:
        OSError: the disk is full.
    """
    provenance = read_provenance(run)
    for entry in (*summary["promoted"], *summary["baselines"]):
        if not entry["path"]:
            continue
        model = run / entry["path"]
        for file in kept_files(run, provenance):
            shutil.copyfile(file, model / file.name)
        write_whole(
            model / "README.md", model_card(summary, entry["label"], provenance, origin=entry["origin"])
        )
