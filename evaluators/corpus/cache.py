"""The cache of token blocks on disk.

A file is used only if its blocks match the fingerprint stored with them, so a damaged or foreign one is
ignored.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evaluators.corpus.blocks import Corpus, Split, corpus_fingerprint
from evaluators.corpus.layout import Layout

logger = logging.getLogger(__name__)
#: The tensors that a corpus may have besides its splits, by the fields that hold them.
_OTHERS = ("distillation_learnt", "validation_learnt", "long", "long_learnt")


@dataclass(frozen=True)
class CorpusCache:
    """The cached corpora for one request; they differ in the version of the text.

    Attributes:
        folder: the folder of the cache.
        key: SHA-256 over everything that decides the blocks except the text itself.
    """

    folder: Path
    key: str

    def load(self, version: str) -> Corpus | None:
        """Return the corpus of a version of the text; None if there is no intact one."""
        path = self._path(version)
        return _read_cached(path, {"key": self.key, "version": version}) if path.exists() else None

    def newest(self) -> Corpus | None:
        """Return the corpus cached last, of any version of the text; None if there is no intact one."""
        paths = self.folder.glob(f"corpus-{self.key[:16]}-*.safetensors")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            if corpus := _read_cached(path, {"key": self.key}):
                return corpus
        return None

    def save(self, corpus: Corpus, version: str) -> None:
        """Cache a corpus; the file appears under its name only when it is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "id": corpus.id,
            "key": self.key,
            "version": version,
            "validation_bytes": str(corpus.validation_bytes),
            "fingerprint": corpus.fingerprint,
            "layout": json.dumps(vars(corpus.layout)),
        }
        blocks = {split.value: tokens.contiguous() for split, tokens in corpus.blocks.items()}
        found = {name: getattr(corpus, name) for name in _OTHERS}
        others = {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".new")
        os.close(descriptor)
        try:
            save_file(blocks | others, name, metadata)
            os.replace(name, self._path(version))
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, version: str) -> Path:
        return self.folder / f"corpus-{self.key[:16]}-{version[:16]}.safetensors"


def _read_cached(path: Path, expected: dict[str, str]) -> Corpus | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            blocks = {split: file.get_tensor(split.value) for split in Split}
            others = {name: file.get_tensor(name) for name in _OTHERS if name in file.keys()}  # noqa: SIM118
        matches = all(metadata.get(name) == value for name, value in expected.items())
        if matches and metadata["fingerprint"] == corpus_fingerprint(blocks, others):
            return Corpus(
                id=metadata["id"],
                calibration=blocks[Split.CALIBRATION],
                distillation=blocks[Split.DISTILLATION],
                validation=blocks[Split.VALIDATION],
                validation_bytes=int(metadata["validation_bytes"]),
                fingerprint=metadata["fingerprint"],
                layout=Layout(**json.loads(metadata["layout"])),
                **others,
            )
        reason = "its content is not what it says"
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("the kept text %s cannot be used (%s); reading the text anew", path, reason)
    return None
