"""The teacher's targets of a run: the form decided once, and what is missing of them made."""

from __future__ import annotations

import json
from dataclasses import replace

from accelerate import Accelerator

from evaluators.corpus.corpus import Corpus
from evaluators.corpus.fingerprint import fingerprint
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.choice import Setting, size_text, spoken
from evaluators.distillation.targets.form import Form, FormName
from evaluators.distillation.targets.hidden import Hidden
from evaluators.distillation.targets.live import LiveTargets, TextTargets
from evaluators.distillation.targets.sampled import Sampled
from evaluators.distillation.targets.top_k import TopK
from evaluators.huggingface.final_states import states_width
from evaluators.teacher import Teacher
from search.settings.config import RunConfig
from search.settings.resolution import Resolved
from search.stages.targets_plan import (
    TargetsPlan,
    asks_teacher,
    free_bytes,
    places_of,
    plan_targets,
    setting_of,
)
from search.storage.run_directory import RunDirectory
from search.storage.whole_file import write_whole
from search.terminal.console import Console


def check_targets(resolved: Resolved, directory: RunDirectory) -> None:
    """Refuse targets that were asked for and cannot be, before the teacher is loaded.

    Raises:
        InputError: see ``plan_targets``.
    """
    if _decided(directory) is None:
        config = resolved.config
        setting = setting_of(resolved, config.distillation_blocks * config.block)
        plan_targets(config, setting, free_bytes(directory.path))


def targets_of(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    accelerator: Accelerator,
    console: Console,
) -> tuple[Targets, Targets]:
    """The targets of the rungs and those of retraining; what is to lie on the disk is there afterwards.

    Args:
        resolved: the run.
        teacher: the model whose targets are learnt.
        corpus: with the distillation set.
        directory: of the run.
        accelerator: device and precision.
        console: for progress.

    Raises:
        InputError: see ``plan_targets``.
        OSError: the disk is full; what was made is kept.
    """
    config, tokens = resolved.config, corpus.distillation
    if not asks_teacher(config):
        console.forecast.skip("forward", tokens.numel())
        text = TextTargets(tokens, teacher.model.device)
        return text, text
    places = places_of(resolved)
    setting = setting_of(resolved, tokens.numel(), states_width(teacher.model))
    plan = _decide(config, setting, directory)
    live = LiveTargets(teacher.model, tokens, places, accelerator.autocast)
    if not plan.blocks:
        console.say("the teacher's targets are kept nowhere: it runs beside the student; --targets chooses")
        console.forecast.skip("forward", tokens.numel())
        return live, live
    form = _form(plan.form, teacher, config)
    key = fingerprint(teacher.fingerprint, str(teacher.model.dtype), config.dtype)
    kept = tokens[: plan.blocks]
    cached = CachedTargets(teacher.model, kept, form, directory.targets, key, places, accelerator.autocast)
    _fill(cached, replace(setting, tokens=kept.numel()), plan.form, console)
    console.forecast.skip("forward", tokens.numel() - kept.numel())
    return cached, cached if cached.blocks == len(tokens) else live


def _form(name: FormName, teacher: Teacher, config: RunConfig) -> Form:
    if name is FormName.HIDDEN:
        return Hidden(teacher.model)
    if name is FormName.SAMPLED:
        return Sampled(teacher.model, config.temperature, seed=config.seed)
    return TopK(teacher.model, config.temperature)


def _decide(config: RunConfig, setting: Setting, directory: RunDirectory) -> TargetsPlan:
    """What an earlier process decided, whatever the disk says now; else by the disk."""
    plan = _decided(directory)
    if plan is None:
        plan = plan_targets(config, setting, free_bytes(directory.path))
        directory.targets.mkdir(parents=True, exist_ok=True)
        write_whole(directory.targets / "choice.json", json.dumps(vars(plan)))
    return plan


def _decided(directory: RunDirectory) -> TargetsPlan | None:
    try:
        table = json.loads((directory.targets / "choice.json").read_text())
        return TargetsPlan(FormName(table["form"]), int(table["blocks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fill(cached: CachedTargets, setting: Setting, form: FormName, console: Console) -> None:
    """Say what will be made, and make it."""
    block, tokens, folder = cached.tokens.shape[1], cached.tokens.numel(), cached.records.folder
    missing = len(cached.missing()) * block
    console.forecast.skip("forward", tokens - missing)
    if not missing:
        console.say(f"reusing the teacher's targets in {folder}")
        return
    there = "" if missing == tokens else f", {tokens - missing:,} of them there already"
    console.say(
        f"caching the teacher's targets of {tokens:,} tokens as {spoken(form)}{there}: "
        f"{size_text(setting.bytes_of(form))} of {size_text(free_bytes(folder))} free; --targets chooses"
    )
    with console.work("caching the teacher's targets", "forward", missing) as advance:
        cached.fill(lambda blocks: advance(blocks * block))
