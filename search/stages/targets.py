"""The teacher's targets in a run: which model provides them and in which form, decided once, then cached.

In a family the teacher of a later run is a student of an earlier one; the original model may provide the
targets for all runs.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from accelerate import Accelerator

from evaluators.corpus.blocks import fingerprint
from evaluators.corpus.corpus import Corpus
from evaluators.distillation.targets.batch import Form, FormName, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.choice import TargetsSetting, form_in_words, size_text
from evaluators.distillation.targets.live import Hidden, LiveTargets, TextTargets
from evaluators.distillation.targets.long_tail import LongTail
from evaluators.distillation.targets.sparse import Sampled, TopK
from evaluators.huggingface.final_states import check_head, states_width, vocabulary_size
from evaluators.teacher import Teacher, load_teacher
from evaluators.teacher.layer_by_layer import TeacherFiles
from search.settings.config import RunConfig
from search.settings.methods import check_states, loss_of, weights_dtype
from search.settings.resolved import Resolved
from search.settings.targets_plan import (
    TargetsPlan,
    asks_teacher,
    free_bytes,
    places_of,
    plan_targets,
    setting_of,
)
from search.stages.layer_by_layer import final_states_of, teacher_files
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from space.input_error import InputError


def check_targets(resolved: Resolved, directory: RunDirectory) -> None:
    """Check, before the teacher is loaded, that the requested targets are possible.

    Raises:
        InputError: see ``plan_targets``.
    """
    if _load_plan(directory) is None:
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
    """Return the targets of the rungs and those of retraining; fill the cache on disk as planned.

    Args:
        resolved: the run.
        teacher: the model that provides the targets.
        corpus: corpus with the distillation set.
        directory: run directory.
        accelerator: device and precision.
        console: for progress.

    Raises:
        InputError: see ``plan_targets``.
        OSError: the disk is full; the targets made so far are kept.
    """
    config = resolved.config
    short, retraining = _short_targets(resolved, teacher, corpus, directory, accelerator, console)
    if corpus.long is None:
        return short, retraining
    long: Targets = TextTargets(corpus.long, teacher.residence.device, corpus.long_learnt)
    if asks_teacher(config):
        how = (places_of(resolved), accelerator.autocast, teacher.residence)
        long = LiveTargets(teacher.model, corpus.long, *how, corpus.long_learnt)
    return short, LongTail(retraining, long, config.long_share)


def _short_targets(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    accelerator: Accelerator,
    console: Console,
) -> tuple[Targets, Targets]:
    """Return the targets on blocks of the run's length; arguments and errors as for ``targets_of``."""
    config, tokens, learnt = resolved.config, corpus.distillation, corpus.distillation_learnt
    if not asks_teacher(config):
        console.forecast.skip("forward", tokens.numel())
        text = TextTargets(tokens, teacher.residence.device, learnt)
        return text, text
    places = places_of(resolved)
    setting = setting_of(resolved, tokens.numel(), states_width(teacher.model))
    plan = _load_or_make_plan(config, setting, directory)
    how = (places, accelerator.autocast, teacher.residence)
    live = LiveTargets(teacher.model, tokens, *how, learnt)
    if not plan.blocks:
        console.say("the teacher's targets are kept nowhere: it runs beside the student; --targets chooses")
        console.forecast.skip("forward", tokens.numel())
        return live, live
    form = _form(plan.form, teacher, config)
    key = fingerprint(teacher.fingerprint, str(teacher.model.dtype), config.dtype)
    kept = corpus.shortened(plan.blocks)
    cached = CachedTargets(
        teacher.model, kept.distillation, form, directory.targets, key, *how, kept.distillation_learnt
    )
    files = None
    if resolved.placement.layer_by_layer:
        files = teacher_files(teacher, resolved.teaching, config.trust_remote_code)
    held = cached.tokens.numel()
    _fill_cache(cached, replace(setting, tokens=held), plan.form, console, files)
    console.forecast.skip("forward", tokens.numel() - held)
    return cached, cached if cached.blocks == len(tokens) else live


def _form(name: FormName, teacher: Teacher, config: RunConfig) -> Form:
    if name is FormName.HIDDEN:
        return Hidden(teacher.model)
    if name is FormName.SAMPLED:
        return Sampled(teacher.model, config.temperature, seed=config.seed)
    return TopK(teacher.model, config.temperature)


def _load_or_make_plan(config: RunConfig, setting: TargetsSetting, directory: RunDirectory) -> TargetsPlan:
    """Return the plan of an earlier process, if there is one; else plan by the free space and save it."""
    plan = _load_plan(directory)
    if plan is None:
        plan = plan_targets(config, setting, free_bytes(directory.path))
        directory.targets.mkdir(parents=True, exist_ok=True)
        atomic_write(directory.targets / "choice.json", json.dumps(vars(plan)))
    return plan


def _load_plan(directory: RunDirectory) -> TargetsPlan | None:
    try:
        table = json.loads((directory.targets / "choice.json").read_text())
        return TargetsPlan(FormName(table["form"]), int(table["blocks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fill_cache(
    cached: CachedTargets,
    setting: TargetsSetting,
    form: FormName,
    console: Console,
    files: TeacherFiles | None,
) -> None:
    """Announce and compute the missing targets, from the teacher's ``files`` if it is read layer by layer."""
    block, tokens, folder = cached.tokens.shape[1], cached.tokens.numel(), cached.records.folder
    missing = len(cached.missing()) * block
    console.forecast.skip("forward", tokens - missing)
    if not missing:
        console.say(f"reusing the teacher's targets in {folder}")
        return
    there = "" if missing == tokens else f", {tokens - missing:,} of them there already"
    console.say(
        f"caching the teacher's targets of {tokens:,} tokens as {form_in_words(form)}{there}: "
        f"{size_text(setting.bytes_of(form))} of {size_text(free_bytes(folder))} free; --targets chooses"
    )
    with console.work("caching the teacher's targets", "forward", missing) as advance:

        def told(blocks: int) -> None:
            advance(blocks * block)

        if files is None:
            cached.fill(told)
        else:
            cached.fill_by(final_states_of(files, cached.precision), told)


def teaching_model(config: RunConfig, teacher: Teacher) -> Teacher:
    """Return the model that provides the targets: the teacher, unless the run names another and needs it.

    Args:
        config: configuration of the run.
        teacher: the loaded model that students are cut from; another one stays on the device if it does.

    Raises:
        InputError: the other model cannot be loaded, has another vocabulary, or has an unsupported head.
    """
    if not config.taught_by or not (loss_of(config).needs_teacher or config.states):
        return teacher
    teaching = load_teacher(
        config.taught_by,
        revision=config.taught_by_revision or None,
        device=torch.device(config.device),
        dtype=weights_dtype(config),
        trust_remote_code=config.trust_remote_code,
        stays=teacher.stays,
    )
    _check_vocabulary(config, teacher, teaching)
    with teaching.on_device():
        check_head(teaching.model)
    check_states(config, teaching.model)
    return teaching


def _check_vocabulary(config: RunConfig, teacher: Teacher, teaching: Teacher) -> None:
    own, other = vocabulary_size(teacher.model), vocabulary_size(teaching.model)
    if own != other:
        raise _another_vocabulary(config, f"they have {other:,} and {own:,} tokens")
    if teacher.tokenizer.get_vocab() != teaching.tokenizer.get_vocab():
        raise _another_vocabulary(config, "their tokenizers number tokens differently")


def _another_vocabulary(config: RunConfig, why: str) -> InputError:
    return InputError(
        "Whoever teaches a student has to have its vocabulary",
        f"{config.taught_by} was to teach what is cut from {config.teacher}, and {why}",
        "Take --taught-by previous",
    )
