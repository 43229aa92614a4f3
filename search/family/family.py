"""A family of models, one per budget; each run cuts its students from the model that the previous run chose.

Training only the largest model and deriving the smaller ones by pruning and distillation is the first best
practice of arXiv 2407.14679 (section 4.1). Each stage is an ordinary run in a folder below the family's,
so the same command resumes a family as it does a run.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from evaluators.teacher import load_config
from search.family.cost import FamilyCost, StageCost, family_table, stage_cost
from search.planning.messages import (
    as_json_line,
    chosen_row,
    hours_line,
    opening_line,
    result_as_dict,
    result_text,
)
from search.planning.plan import Plan, plan
from search.runs.summary import read
from search.settings.flag_rules import budgets_named, parse_count
from search.settings.flags import Flags
from search.settings.resolution import (
    budget_of,
    nearest_teacher,
    resolve_from,
    teachers_named,
)
from search.settings.resolved import Resolved
from search.settings.run_name import folders_of, name_of
from search.settings.teachers import Training, TrainingPhase, training_tokens
from search.stages.pipeline import run
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, BudgetText, Measure
from space.counting.counting import matrix_polynomial
from space.cutting.extraction import student_config
from space.enumeration.hand_made import baselines
from space.input_error import InputError


class FamilyRoot(NamedTuple):
    """The teacher at the start of a chain of runs."""

    id: str
    revision: str
    axis_map: AxisMap


class Parent(NamedTuple):
    """The model that a stage chose, the teacher of the next one."""

    path: str
    config: PretrainedConfig
    root: FamilyRoot


class Stage(NamedTuple):
    """One run of a family."""

    resolved: Resolved
    directory: RunDirectory
    root: FamilyRoot
    assumed: bool
    """Whether its teacher does not exist yet, and a hand-made student stands in for it."""


@dataclass(frozen=True)
class Family:
    """The runs of several budgets, largest first."""

    flags: Flags
    name: str
    budgets: tuple[Budget, ...]
    folders: tuple[str, ...]
    """Folder names of the runs, below the family's."""
    trainings: tuple[Training, ...]
    """The teachers that the user named, or the one picked for the largest budget."""
    first: Resolved
    """The run of the largest budget."""

    @property
    def path(self) -> Path:
        """The folder of the family."""
        return self.flags.out / self.name

    def stage(self, number: int, parent: Parent | None) -> Stage:
        """Return a run by its number from 0, given the model that the previous run chose.

        Raises:
            InputError: the run is impossible.
        """
        if parent is None:
            return self._stage_of(number, self.first, None)
        flags, teachers = self._flags_of(number), self._teachers_of(parent)
        return self._stage_of(number, resolve_from(flags, teachers, len(self.budgets)), parent)

    def parent(self, stage: Stage, summary: dict[str, Any]) -> Parent:
        """Return the model that a finished stage chose.

        Raises:
            InputError: the stage chose no model.
        """
        row = chosen_row(summary)
        if row is None:
            raise InputError(
                "A family goes on from the model that the run before chose",
                f"no model of {stage.directory.path} could be retrained",
                f"See {stage.directory.report} for the reasons",
            )
        path = str(stage.directory.path / row["path"])
        return Parent(path, load_config(path, None, self.flags.trust_remote_code), stage.root)

    def stages(self) -> Iterator[Stage]:
        """Yield all runs; those whose teacher does not exist yet are approximate.

        The first suitable hand-made student of the previous run stands in for such a teacher.

        Raises:
            InputError: a run is impossible, or its directory belongs to another configuration.
        """
        stage = self.stage(0, None)
        for number in range(len(self.budgets)):
            if not stage.assumed:
                stage.directory.refuse_another(stage.resolved.config)
            yield stage
            if number + 1 < len(self.budgets):
                stage = self._next_stage(number + 1, stage)

    def _next_stage(self, number: int, before: Stage) -> Stage:
        summary = None if before.assumed else _finished(before.directory)
        if summary is not None:
            return self.stage(number, self.parent(before, summary))
        refusal: InputError | None = None
        for parent in _stand_ins(before):
            try:
                found = self.stage(number, parent)
            except InputError as error:
                refusal = refusal or error
            else:
                assumed = found.resolved.config.teacher == parent.path
                return found._replace(assumed=before.assumed or assumed)
        assert refusal is not None, "a space holds an architecture"
        raise refusal

    def _flags_of(self, number: int) -> Flags:
        """Return the flags of a later stage; text and dtypes fixed those of the first."""
        first = self.first.config
        fixed: dict[str, Any] = {"data": first.data, "dtype": first.dtype, "budget_dtype": first.budget_dtype}
        location: dict[str, Any] = {"out": self.path, "study_name": self.folders[number]}
        return replace(self.flags, budget=str(self.budgets[number].amount), **location, **fixed)

    def _teachers_of(self, parent: Parent) -> list[Training]:
        """Return the possible teachers of a later stage; a single named one is farther than its student."""
        student = Training((TrainingPhase(parent.path, None),), parent.config)
        return [student, *(self.trainings if len(self.trainings) > 1 else ())]

    def _stage_of(self, number: int, resolved: Resolved, parent: Parent | None) -> Stage:
        """Return the stage of a resolved run, with its name and its teaching model."""
        config = resolved.config
        directory = RunDirectory(self.path / self.folders[number])
        own: dict[str, Any] = {"name": f"{self.name}/{self.folders[number]}"}
        if parent is None or config.teacher != parent.path:
            corrected = str(directory.corrected_teacher) if config.teacher_correction else None
            root = FamilyRoot(
                corrected or config.teacher, "" if corrected else config.revision, resolved.axis_map
            )
            return Stage(resolved.with_config(**own), directory, root, assumed=False)
        root = parent.root
        own["teacher_correction"] = 0  # the text is what this teacher was distilled on
        if self.flags.taught_by == "original":
            own |= {"taught_by": root.id, "taught_by_revision": root.revision}
            return Stage(resolved.with_config(root.axis_map, **own), directory, root, assumed=False)
        return Stage(resolved.with_config(**own), directory, root, assumed=False)


def family_of(flags: Flags) -> Family:
    """Build a family from flags with several budgets.

    Raises:
        InputError: the budgets do not descend, or the first one is impossible.
    """
    budget_texts, folders = budgets_named(flags), folders_of(flags)
    largest = replace(flags, budget=budget_texts[0])
    trainings = teachers_named(largest)
    name = name_of(flags, nearest_teacher(largest, trainings)[0].phases[-1].id)
    located = replace(largest, out=flags.out / name, study_name=folders[0])
    first = resolve_from(located, trainings, len(budget_texts))
    texts = [BudgetText.parse(text, Measure(flags.budget_of)) for text in budget_texts]
    budgets = [budget_of(flags, text, first.axis_map)[0] for text in texts]
    for above, below in pairwise(budgets):
        if below.highest >= above.lowest:
            raise InputError(
                "The budgets of a family descend, each below all that the one before it allows",
                f"{below} follow {above}",
                "Order --budget from large to small, farther apart, or narrow --tolerance",
            )
    return Family(flags, name, tuple(budgets), tuple(folders), tuple(trainings), first)


def _finished(directory: RunDirectory) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if it cannot be read (the run will write it again)."""
    try:
        return read(directory.summary)
    except InputError:
        return None


def _stand_ins(stage: Stage) -> Iterator[Parent]:
    """Yield hand-made students of a stage that can stand in for the model that it will choose."""
    resolved = stage.resolved
    axis_map, space = resolved.axis_map, resolved.space
    found = list(baselines(space, axis_map.teacher).values()) or [space.architectures[0]]
    for architecture in found:
        config = student_config(axis_map, architecture, range(architecture.layers))
        yield Parent(f"the model that {resolved.config.name} chooses", config, stage.root)


def run_family(flags: Flags, command: str) -> str:
    """Run the stages of a family, or plan them under ``--plan``; finished stages are not repeated.

    Args:
        flags: flags with several budgets.
        command: the user's command line, for the summaries.

    Returns:
        The result for stdout; JSON under ``--json``.

    Raises:
        InputError: a stage is impossible; as far as this can be known, it is raised before any work.
    """
    family = family_of(flags)
    if flags.plan:
        plans = [(stage, plan(stage.resolved, stage.directory)) for stage in family.stages()]
        if flags.json:
            return as_json_line(
                [{"run": one.resolved.config.name, **found.as_dict()} for one, found in plans]
            )
        return "\n\n".join(_plan_text(stage, found) for stage, found in plans)
    for _ in family.stages():  # raises if a stage is impossible
        pass
    texts, results, costs = [], [], []
    parent: Parent | None = None
    for number in range(len(family.budgets)):
        stage = family.stage(number, parent)
        summary = _run(family, stage, command)
        texts.append(f"{_heading(stage)}\n{result_text(summary, stage.directory)}")
        results.append(result_as_dict(summary, stage.directory))
        parent = family.parent(stage, summary)
        costs.append(stage_cost(stage.resolved, summary))
    cost = _family_cost(family, costs)
    atomic_write(family.path / "family.json", json.dumps(cost.as_dict() | {"command": command}, indent=1))
    if flags.json:
        return as_json_line({"models": results, "family": cost.as_dict()})
    return "\n\n".join([*texts, family_table(cost)])


def _run(family: Family, stage: Stage, command: str) -> dict[str, Any]:
    _free_memory()
    console = Console(family.flags.quiet, family.flags.verbose)
    console.say(f"{stage.resolved.config.name}: {opening_line(stage.resolved)}")
    if stage.resolved.config.hours:
        console.say(hours_line(stage.resolved))
    return run(stage.resolved, stage.directory, console, command)


def _free_memory() -> None:
    """Free the models of the previous run, which ``gc.freeze`` hid from the collector."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _family_cost(family: Family, costs: Sequence[StageCost]) -> FamilyCost:
    flags, teacher, axis_map = family.flags, family.first.config.teacher, family.first.axis_map
    given = flags.teacher_tokens
    return FamilyCost(
        name=family.name,
        original=teacher,
        original_weights=int(matrix_polynomial(axis_map).of(axis_map.teacher)),
        taught_by=flags.taught_by,
        stages=tuple(costs),
        teacher_tokens=parse_count(given, "--teacher-tokens") if given else training_tokens(teacher),
    )


def _plan_text(stage: Stage, found: Plan) -> str:
    assumed = "counted with the most even hand-made student in its place; another changes sizes and work"
    note = f"\n{stage.resolved.config.teacher} is not there yet: {assumed}" if stage.assumed else ""
    return f"{_heading(stage)}{note}\n{found}"


def _heading(stage: Stage) -> str:
    return f"— {stage.resolved.config.name} —"
