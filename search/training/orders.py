"""What the main process tells the others to do with it; see ``ranks``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.sharing import Described
from search.settings.resolution import Resolved
from search.training.trainer import Lesson


@dataclass(frozen=True)
class Begin:
    """A run: load its teacher."""

    resolved: Resolved
    directory: Path
    """Of the run, on a disk that all processes see."""
    corpus: Corpus
    """With as much text as the correction of the teacher reads."""


@dataclass(frozen=True)
class Correct:
    """Train the teacher itself."""


@dataclass(frozen=True)
class TakeCorrected:
    """Load the corrected teacher from where it was written."""


@dataclass(frozen=True)
class TakeTargets:
    """Open the teacher's targets, which are made."""

    blocks: int
    """Of the distillation set, the first so many."""


@dataclass(frozen=True)
class Train:
    """Train a student that the main process then sends."""

    student: Described
    lesson: Lesson
    retraining: bool
    """Whether it learns from the targets of retraining, and not from those of the rungs."""
