"""Corpora already read, kept as safetensors under the hash of what decides their content.

A file is taken only if its blocks match the fingerprint written beside them, so a torn file, or
one that something else wrote, is as good as none.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evaluators.corpus.blocks import Corpus, fingerprint_of
from evaluators.corpus.split import Split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """The corpora in a folder that one request could use.

    Attributes:
        folder: where they lie.
        key: SHA-256 over all that decides the blocks but the text itself.
    """

    folder: Path
    key: str

    def load(self, version: str) -> Corpus | None:
        """The corpus of a version of the text; None if there is none that is whole."""
        path = self._path(version)
        return _read(path, {"key": self.key, "version": version}) if path.exists() else None

    def newest(self) -> Corpus | None:
        """The corpus kept last of whatever version of the text; None if there is none that is whole."""
        paths = self.folder.glob(f"corpus-{self.key[:16]}-*.safetensors")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            if corpus := _read(path, {"key": self.key}):
                return corpus
        return None

    def save(self, corpus: Corpus, version: str) -> None:
        """Keep a corpus: written under another name first, so that no half of it is ever found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "id": corpus.id,
            "key": self.key,
            "version": version,
            "validation_bytes": str(corpus.validation_bytes),
            "fingerprint": corpus.fingerprint,
        }
        blocks = {split.value: tokens.contiguous() for split, tokens in corpus.blocks.items()}
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".new")
        os.close(descriptor)
        try:
            save_file(blocks, name, metadata)
            os.replace(name, self._path(version))
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, version: str) -> Path:
        return self.folder / f"corpus-{self.key[:16]}-{version[:16]}.safetensors"


def _read(path: Path, expected: dict[str, str]) -> Corpus | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            blocks = {split: file.get_tensor(split.value) for split in Split}
        meant = all(metadata.get(name) == value for name, value in expected.items())
        if meant and metadata["fingerprint"] == fingerprint_of(blocks):
            return Corpus(
                id=metadata["id"],
                calibration=blocks[Split.CALIBRATION],
                distillation=blocks[Split.DISTILLATION],
                validation=blocks[Split.VALIDATION],
                validation_bytes=int(metadata["validation_bytes"]),
                fingerprint=metadata["fingerprint"],
            )
        reason = "its content is not what it says"
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("the kept text %s cannot be used (%s); reading the text anew", path, reason)
    return None
