"""The directory of a run: paths of its files, atomic writes, and the check that it belongs to this run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.settings.config import RunConfig
from search.storage.workers import Workers
from space.input_error import InputError


def atomic_write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8 by way of a temporary file in the same folder.

    Raises:
        OSError: the folder is missing, full or not writable; ``path`` is then unchanged.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class RunDirectory:
    """The paths of one run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.ranking = path / "ranking.safetensors"
        self.layers = path / "layers.safetensors"
        self.moments = path / "moments.safetensors"
        self.basis = path / "basis.json"
        self.rates = path / "rates.json"
        self.targets = path / "targets"
        self.models = path / "models"
        self.retraining = path / "retraining"
        self.report = path / "report.html"
        self.summary = path / "summary.json"
        self.teacher = path / "teacher.json"
        self.corrected_teacher = path / "teacher"
        self.correction = path / "correction.json"
        self.correction_checkpoint = path / "correction.safetensors"
        self.choice = path / "choice.json"
        self.benchmarks = path / "benchmarks.json"
        self.tasks = path / "tasks"
        self.inspection = path / "inspection.json"
        self.energy = path / "energy"
        self.branches = path / "branches"
        self.seconds = path / "seconds.json"

    def ranking_of(self, basis: str) -> Path:
        """Return the path of the ranking in a basis during the trial of bases."""
        return self.path / f"ranking-{basis}.safetensors"

    def sorted_of(self, basis: str) -> Path:
        """Return the path of the teacher's sorted weights in a basis, until the run is complete."""
        return self.path / f"sorted-{basis}.safetensors"

    @contextmanager
    def joined(self, config: RunConfig) -> Iterator[Workers]:
        """Join the workers of the run; the first one creates the directory.

        Raises:
            InputError: the directory belongs to another configuration, or its storage supports one process
                and another is running.
        """
        self.refuse_another(config)
        self.claim(config)
        self.refuse_another(config)
        workers = Workers(self.path)
        with workers.present():
            if config.storage.startswith("sqlite") and workers.others():
                raise InputError(
                    "With SQLite one process works on a run at a time",
                    f"another one is at work in {self.path}",
                    "Wait for it, or leave --storage out: the default serves several on one host",
                )
            yield workers

    def claim(self, config: RunConfig) -> None:
        """Create the directory with this configuration, unless a worker has begun the run.

        Raises:
            InputError: the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with Workers(self.path).turn("config"):
                if not self.config.exists():
                    atomic_write(self.config, config.to_toml())
        except OSError as error:
            raise InputError(
                "The folder of the runs has to be writable",
                f"{self.path}: {error.strerror}",
                "Name another with --out",
            ) from None

    def refuse_another(self, config: RunConfig) -> None:
        """Check that the directory is new or belongs to this configuration.

        Raises:
            InputError: it belongs to another configuration; the message names the differences.
        """
        if not self.config.exists():
            return
        remedy = "Take another --study-name, repeat the flags of that run, or delete the directory"
        try:
            before = RunConfig.load(self.config)
        except ValueError as error:
            values = f"{self.config} cannot be read: {error}"
        else:
            differences = config.differences(before)
            if not differences:
                return
            values = f"in {self.path}, {'; '.join(differences)}"
        raise InputError("A run directory keeps the configuration that it was begun with", values, remedy)
