"""A run that is there, finished or not, as the commands after it read it; nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from space.cutting.ranking import Ranking


@dataclass(frozen=True)
class RankingView:
    """Scores of every axis.

    Attributes:
        profiles: by axis, named as in architectures: ``mlp``, ``heads`` or ``hidden``.
        layers: the scores of the layers, in their order; none if they have none.
        method: how the scores were made, in words.
        turned: hidden are directions of a turned basis, not coordinates.
    """

    profiles: Mapping[str, Profile]
    layers: Sequence[float] = ()
    method: str = ""
    turned: bool = False

    @classmethod
    def of(cls, ranking: Ranking) -> RankingView:
        """What the report shows of a teacher's ranking."""
        layers = ranking.scores[Axis.LAYERS].tolist()
        return cls(ranking.shown(), layers, ranking.method, turned=ranking.basis is not None)


#: Where a bare name is looked for.
RUNS = Path("runs")


@dataclass(frozen=True)
class SavedRun:
    """One run directory and what lies in it."""

    directory: RunDirectory
    config: RunConfig

    @property
    def path(self) -> Path:
        """Of the directory."""
        return self.directory.path

    @property
    def finished(self) -> bool:
        """Whether it has a summary."""
        return self.directory.summary.exists()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the run came to.

        Raises:
            InputError: the run is not finished, or its summary is torn or of another version.
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
        """Of the teacher; None if there is none yet."""
        return Ranking.load(self.directory.ranking, None)

    @property
    def ranking_view(self) -> RankingView | None:
        """What the report shows of the ranking."""
        return RankingView.of(self.ranking) if self.ranking else None

    @cached_property
    def axis_map(self) -> AxisMap | None:
        """Of the teacher; None where its configuration is not at hand any more."""
        corrected = self.directory.corrected_teacher
        place, revision = self.config.teacher, self.config.revision or None
        if corrected.is_dir():
            place, revision = str(corrected), None
        with suppress(InputError, OSError):
            return verified_axis_map(load_config(place, revision, self.config.trust_remote_code))
        return None

    def kept_layers(self, architecture: Architecture) -> list[int] | None:
        """Which of the teacher's layers a student keeps, ascending; None where that is not known yet."""
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
        """Those of the rungs that were begun, rung 0 first; none is created.

        Raises:
            InputError: the storage is not there or cannot be reached, or holds none of them.
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
    """The run that a person means.

    Args:
        name: path of a run directory, or a bare name below ``runs/``.

    Raises:
        InputError: there is none, or it was made by another version.
    """
    path = next((one for one in (Path(name), RUNS / name) if (one / "config.toml").exists()), None)
    if path is None:
        raise _not_there(str(name))
    directory = RunDirectory(path)
    try:
        return SavedRun(directory, RunConfig.load(directory.config))
    except (ValueError, TypeError) as error:
        raise InputError(
            "A run is read by the version that made it",
            f"{directory.config} cannot be read: {error}",
            "Use that version, or begin the run anew",
        ) from None


def _not_there(name: str) -> InputError:
    there = sorted(one.parent.name for one in RUNS.glob("*/config.toml"))
    near = get_close_matches(Path(name).name, there, n=3, cutoff=0.4) or there[:3]
    return InputError(
        "A run is named by its directory, or by its name below runs/",
        f"{name!r} holds no config.toml" if Path(name).is_dir() else f"there is no {name!r}",
        f"Did you mean {' or '.join(map(repr, near))}"
        if near
        else "Name a folder that python -m search.run made",
    )
