"""A last look at the teacher and every model that was written: what it writes, and where size and time lie.

It is taken once. What was found is kept model by model, for a run that is started again and for the
workers that come to the end after the first.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from evaluators.huggingface.one_line import one_line
from search.rungs.evaluation import Retrained
from search.stages.benchmarks import TEACHER
from search.stages.breakdown import Breakdown, breakdown_of
from search.stages.continuations import Continuation, Prompts, continuations_of, prompts_of
from search.stages.retraining import reload
from search.stages.workbench import Workbench
from search.storage.run_directory import RunDirectory
from search.storage.whole_file import write_whole
from search.terminal.console import Console


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    prompts: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    """By model (``teacher``, or the path of a retrained one) its ``continuations`` and its ``breakdown``, as
    the summary has them."""

    def of(self, model: str | None) -> dict[str, Any]:
        """What was found of a model; empty of one that was not kept."""
        return self.models.get(model or "", {"continuations": [], "breakdown": None})


def inspect(
    bench: Workbench, retrained: Sequence[Retrained], directory: RunDirectory, console: Console
) -> Inspection:
    """Look at the teacher and at every model that was written.

    What an earlier process found is taken as it is. A model that cannot be looked at is left out, and tried
    again when the run is started again.

    Raises:
        OSError: the disk is full.
    """
    context = getattr(bench.teacher.model.config, "max_position_embeddings", None)
    prompts = prompts_of(bench.corpus, bench.teacher.tokenizer, context)
    layers = {
        TEACHER: list(range(bench.axis_map.teacher.layers)),
        **{result.path: bench.kept_layers(result.architecture) for result in retrained if result.path},
    }
    kept = _read(directory, bench)
    found = {model: kept[model] for model in layers if model in kept}
    for name in (model for model in layers if model not in found):
        try:
            model = bench.teacher.model if name == TEACHER else reload(bench, bench.directory / name)
            found[name] = _look(bench, model, prompts, layers[name])
        except Exception as error:  # whatever a class of somebody else's does; the run has its models
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            console.say(f"{name} cannot be looked at: {one_line(error)}")
        _write(directory, bench, found)
    return Inspection(prompts.texts, found)


def _look(
    bench: Workbench, model: PreTrainedModel, prompts: Prompts, layers: Sequence[int]
) -> dict[str, Any]:
    written: list[Continuation] = continuations_of(model, bench.teacher.tokenizer, prompts)
    breakdown: Breakdown = breakdown_of(bench, model, layers)
    return {"continuations": [asdict(one) for one in written], "breakdown": asdict(breakdown)}


def _read(directory: RunDirectory, bench: Workbench) -> dict[str, dict[str, Any]]:
    """What was kept, if it is of this teacher and text."""
    if not directory.inspection.exists():
        return {}
    about = json.loads(directory.inspection.read_text())
    found: dict[str, dict[str, Any]] = about["models"] if about["of"] == _identity(bench) else {}
    return found


def _write(directory: RunDirectory, bench: Workbench, found: dict[str, dict[str, Any]]) -> None:
    about = {"of": _identity(bench), "models": found}
    write_whole(directory.inspection, json.dumps(about, indent=1))


def _identity(bench: Workbench) -> list[str]:
    return [bench.teacher.fingerprint, bench.corpus.fingerprint]
