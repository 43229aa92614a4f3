"""A student on disk is a stock model: one is saved and read back, and everything has to stay the same."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from space.axes.architecture import Architecture
from space.axes.axis_map import BUILD_ERRORS, AxisMap, build
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import extract, layers_kept, saved_tensors, sort_by_importance, student_config
from space.discovery.probing import refusal_reason
from space.verification import stock_process
from space.verification.contract import (
    contract_tokens,
    distance,
    logits_of,
    one_expert_at_a_time,
    random_architecture,
    random_ranking,
)

#: The same weights in the same order of operations.
TOLERANCE = 1e-5
_NEW_TOKENS = 8
_TRIES = 8
#: What libraries say of the machine, whatever the model: a faster kernel's package is absent.
_OF_THE_MACHINE = "is not installed"


def reload_error(model: PreTrainedModel, axis_map: AxisMap, seed: int = 0) -> str | None:
    """What goes wrong when a student, cut along all free axes at once, is saved and read back.

    The teacher goes first: where its class loses something by itself, some students would show it and
    others not.

    Args:
        model: a small teacher with real weights.
        axis_map: its map.
        seed: of the student's sizes and of the ranking.

    Returns:
        The first of: the count is not the student's, keys are missing, left over or of other shapes,
        logits change, a KV cache changes what is generated, a library warns as it does not for the teacher.
        None if all is well.
    """
    state = torch.get_rng_state()
    try:
        with captured_warnings() as heard:
            if lost := _lost(model):
                return f"{lost}, even uncut"
            of_the_class = set(heard)
            made = random_student(model, axis_map, seed)
            if made is None:
                return "the class allows no smaller size that was tried"
            student, architecture = made
            if lost := count_error(student, axis_map, architecture) or _lost(student):
                return lost
            warned = [said for said in heard if said not in of_the_class and _OF_THE_MACHINE not in said]
            return f"it warns: {warned[0].splitlines()[0]}" if warned else None
    except (*BUILD_ERRORS, OSError, NotImplementedError) as error:
        return f"it stops with {type(error).__name__}: {refusal_reason(error)}"[:200]
    finally:
        torch.set_rng_state(state)


def random_student(
    model: PreTrainedModel, axis_map: AxisMap, seed: int
) -> tuple[PreTrainedModel, Architecture] | None:
    """A student of random sizes along all free axes, of a random ranking; None if the class allows none."""
    rng = random.Random(seed)
    ranking = random_ranking(axis_map, seed)
    for _ in range(_TRIES):
        drawn = random_architecture(axis_map, axis_map.free, rng)
        if drawn is None:
            return None
        architecture, kept = drawn[0], layers_kept(axis_map, ranking, drawn[0])
        try:
            build(student_config(axis_map, architecture, kept))
        except BUILD_ERRORS:
            continue
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
        return extract(canonical, axis_map, ranking, architecture, kept), architecture
    return None


def count_error(student: PreTrainedModel, axis_map: AxisMap, architecture: Architecture) -> str | None:
    """How the count from the map differs from the parameters of a built student."""
    counted = parameter_polynomial(axis_map).of(architecture)
    there = sum(parameter.numel() for parameter in student.parameters())
    return None if counted == there else f"{counted:,} parameters are counted where there are {there:,}"


def _lost(model: PreTrainedModel) -> str | None:
    """What is lost between a model in memory and on disk."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    again, info = loaded
    for kind, keys in info.items():
        if keys:
            return f"{kind.replace('_', ' ')}: {sorted(map(str, keys))[0]}"
    tokens = contract_tokens(model.config.get_text_config().vocab_size)
    for each in (model, again):
        one_expert_at_a_time(each)
    if not distance(logits_of(again, tokens), logits_of(model, tokens)) <= TOLERANCE:
        return "it computes other logits"
    if generate_tokens(again, tokens, use_cache=True) != generate_tokens(again, tokens, use_cache=False):
        return "it generates other tokens with a KV cache than without"
    return None


def generate_tokens(model: Any, tokens: Tensor, *, use_cache: bool) -> list[list[int]]:
    """(B, T + a few) prompts and the likeliest tokens after them; a sequence that ends is filled up."""
    texts: Tensor = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
    found: list[list[int]] = texts.tolist()
    return found


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        """Note a message in place of showing it."""
        self.heard.append(record.getMessage())


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Nothing is logged, warned of or drawn within; the list takes what transformers would have said.

    Warnings of what will change in libraries are for developers, and not listed.
    """
    heard: list[str] = []
    library = logging.getLogger("transformers")
    handlers, level, propagate = library.handlers, library.level, library.propagate
    bars, bars_of_the_hub = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    library.handlers, library.propagate = [_Listener(heard)], False
    library.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            heard.append(str(message))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield heard
    finally:
        library.handlers, library.propagate = handlers, propagate
        library.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
        if not bars_of_the_hub:
            disable_progress_bars()


def save_for_check(student: PreTrainedModel, teacher: PretrainedConfig, folder: Path) -> None:
    """Save a student for the other process, with what it computes here.

    Args:
        student: a small one.
        teacher: the config of its teacher.
        folder: a new one for it alone; all folders that are asked about at once lie in one.
    """
    one_expert_at_a_time(student)
    student.save_pretrained(folder / "student")
    teacher.save_pretrained(folder / "teacher")
    tokens = contract_tokens(student.config.get_text_config().vocab_size)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    seen = {"tokens": tokens, "logits": logits_of(student, tokens).contiguous()}
    save_file(seen | {"parameters": torch.tensor(parameters)}, folder / "seen.safetensors")


def load_errors(folder: Path) -> dict[str, str | None]:
    """What a new process finds wrong with each student in a folder, by the name that it was left under.

    Raises:
        RuntimeError: the process failed as a whole.
    """
    command = [sys.executable, "-I", stock_process.__file__, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that reads students failed: {done.stderr[-500:]}")
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found
