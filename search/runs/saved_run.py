"""Read-only access to a run directory, finished or not, for the commands that work on existing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler

from evaluators.teacher import load_config
from search.runs.summary import read
from search.settings.config import RunConfig
from search.storage.run_directory import RunDirectory
from search.storage.storage import open_storage
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import layers_kept
from space.cutting.ranking import Profile, Ranking
from space.input_error import InputError
from space.verification.verification import verified_axis_map

#: The folder in which a bare name of a run is looked up.
RUNS = Path("runs")


@dataclass(frozen=True)
class RankingView:
    """Importance scores of every axis, as the report shows them.

    Attributes:
        profiles: sorted scores by axis, such as ``mlp``, ``heads`` or ``hidden``.
        layers: the score of each layer in layer order; empty if layers have no scores.
        method: how the scores were computed, in words.
        turned: whether the hidden units are directions of a rotated basis rather than coordinates.
    """

    profiles: Mapping[str, Profile]
    layers: Sequence[float] = ()
    method: str = ""
    turned: bool = False

    @classmethod
    def of(cls, ranking: Ranking) -> RankingView:
        """Extract what the report shows from a teacher's ranking."""
        layers = ranking.scores[Axis.LAYERS].tolist()
        return cls(ranking.profiles(), layers, ranking.method, turned=ranking.basis is not None)


@dataclass(frozen=True)
class SavedRun:
    """One run directory and its files, read on first use."""

    directory: RunDirectory
    config: RunConfig

    @property
    def path(self) -> Path:
        """Path of the run directory."""
        return self.directory.path

    @property
    def finished(self) -> bool:
        """Whether the run has a summary."""
        return self.directory.summary.exists()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The checked summary.

        Raises:
            InputError: the run is not finished, or its summary is damaged or of another version.
        """
        if not self.finished:
            raise InputError(
                "Only a run that is finished has a result",
                f"{self.path} has no {self.directory.summary.name}",
                f"Give the command again that began it, or watch it: python -m search.dashboard {self.path}",
            )
        return read(self.directory.summary)

    @cached_property
    def ranking(self) -> Ranking | None:
        """The teacher's ranking; None if it does not exist yet."""
        return Ranking.load(self.directory.ranking, None)

    @property
    def ranking_view(self) -> RankingView | None:
        """The ranking as the report shows it; None if it does not exist yet."""
        return RankingView.of(self.ranking) if self.ranking else None

    @cached_property
    def axis_map(self) -> AxisMap | None:
        """The teacher's axis map; None if the teacher's configuration is no longer available."""
        corrected = self.directory.corrected_teacher
        place, revision = self.config.teacher, self.config.revision or None
        if corrected.is_dir():
            place, revision = str(corrected), None
        with suppress(InputError, OSError):
            return verified_axis_map(load_config(place, revision, self.config.trust_remote_code))
        return None

    def kept_layers(self, architecture: Architecture) -> list[int] | None:
        """Return which of the teacher's layers a student keeps, ascending; None if not known yet."""
        if self.finished:
            return self._kept.get(architecture.label)
        if self.ranking is None or self.axis_map is None:
            return None
        return layers_kept(self.axis_map, self.ranking, architecture)

    @cached_property
    def _kept(self) -> dict[str, list[int]]:
        entries = (*self.summary["trials"], *self.summary["promoted"], *self.summary["baselines"])
        return {entry["label"]: entry["architecture"]["kept_layers"] for entry in entries}

    @cached_property
    def studies(self) -> list[optuna.Study]:
        """The Optuna studies of the rungs that were started, rung 0 first; none is created.

        Raises:
            InputError: the storage is missing or unreachable, or holds no study of this run.
        """
        text = self.config.storage
        journal = Path(text or self.path / "study.journal")
        if "://" not in text and not journal.exists():
            raise self._no_trials(f"{journal} is not there")
        storage = open_storage(text, self.path)
        found = []
        for index in range(self.config.rungs):
            with suppress(KeyError):
                name = f"{self.config.name}/r{index}"
                found.append(optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler()))
        if not found:
            raise self._no_trials(f"no study there is called {self.config.name}/r0")
        return found

    def _no_trials(self, values: str) -> InputError:
        return InputError(
            f"The trials of {self.path} lie in its storage",
            values,
            "Wait until the search has begun, or bring the storage back",
        )


def find_run(name: str | Path) -> SavedRun:
    """Open the run that ``name`` refers to.

    Args:
        name: path of a run directory, or the name of one in ``runs/``.

    Raises:
        InputError: there is no such run, or another version made it.
    """
    path = next((one for one in (Path(name), RUNS / name) if (one / "config.toml").exists()), None)
    if path is None:
        raise _no_such_run(str(name))
    directory = RunDirectory(path)
    try:
        return SavedRun(directory, RunConfig.load(directory.config))
    except (ValueError, TypeError) as error:
        raise InputError(
            "A run is read by the version that made it",
            f"{directory.config} cannot be read: {error}",
            "Use that version, or begin the run anew",
        ) from None


def _no_such_run(name: str) -> InputError:
    existing = sorted(one.parent.name for one in RUNS.glob("*/config.toml"))
    near = get_close_matches(Path(name).name, existing, n=3, cutoff=0.4) or existing[:3]
    return InputError(
        "A run is named by its directory, or by its name below runs/",
        f"{name!r} holds no config.toml" if Path(name).is_dir() else f"there is no {name!r}",
        f"Did you mean {' or '.join(map(repr, near))}"
        if near
        else "Name a folder that python -m search.run made",
    )
