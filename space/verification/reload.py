"""Check that a saved student is an ordinary Hugging Face model: read it back and compare everything."""

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

#: Between logits of the same weights, computed by the same operations in the same order.
TOLERANCE = 1e-5
_NEW_TOKENS = 8
_TRIES = 8
#: Part of warnings about the machine, not the model: the package of a faster kernel is absent.
_ABOUT_THE_MACHINE = "is not installed"


def reload_error(model: PreTrainedModel, axis_map: AxisMap, seed: int = 0) -> str | None:
    """Save and read back a student that is pruned along all free axes, and return what goes wrong.

    The teacher is tested first: if its class already loses something, only some students would show it.

    Args:
        model: a small teacher with random weights.
        axis_map: its map.
        seed: the seed of the student's sizes and of the ranking.

    Returns:
        The first failure among: the parameter count differs from the map's; keys are missing, unexpected or
        of another shape; logits differ; a KV cache changes the generated tokens; a library warns about the
        student but not about the teacher. None if all is well.
    """
    state = torch.get_rng_state()
    try:
        with captured_warnings() as messages:
            if failure := _round_trip_error(model):
                return f"{failure}, even uncut"
            of_the_teacher = set(messages)
            made = random_student(model, axis_map, seed)
            if made is None:
                return "the class allows no smaller size that was tried"
            student, architecture = made
            if failure := count_error(student, axis_map, architecture) or _round_trip_error(student):
                return failure
            own = (text for text in messages if text not in of_the_teacher)
            warned = [text for text in own if _ABOUT_THE_MACHINE not in text]
            return f"it warns: {warned[0].splitlines()[0]}" if warned else None
    except (*BUILD_ERRORS, OSError, NotImplementedError) as error:
        return f"it stops with {type(error).__name__}: {refusal_reason(error)}"[:200]
    finally:
        torch.set_rng_state(state)


def random_student(
    model: PreTrainedModel, axis_map: AxisMap, seed: int
) -> tuple[PreTrainedModel, Architecture] | None:
    """Return a student with random sizes and a random ranking; None if the class allows none drawn."""
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
    """Return how the map's parameter count differs from that of a built student; None if it does not."""
    counted = parameter_polynomial(axis_map).of(architecture)
    actual = sum(parameter.numel() for parameter in student.parameters())
    return None if counted == actual else f"{counted:,} parameters are counted where there are {actual:,}"


def _round_trip_error(model: PreTrainedModel) -> str | None:
    """Save a model, read it back, and return what differs; None if nothing does."""
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
    """Return (B, up to T + 8) token ids: prompts and their greedy continuations, padded with 0."""
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


class _Recorder(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Record a message instead of showing it."""
        self.messages.append(record.getMessage())


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Silence logs, warnings and progress bars within the context; yield the list of captured messages.

    The list leaves out deprecation warnings, which are meant for developers.
    """
    messages: list[str] = []
    library = logging.getLogger("transformers")
    handlers, level, propagate = library.handlers, library.level, library.propagate
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    library.handlers, library.propagate = [_Recorder(messages)], False
    library.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            messages.append(str(message))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield messages
    finally:
        library.handlers, library.propagate = handlers, propagate
        library.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
        if not hub_bars:
            disable_progress_bars()


def save_for_check(student: PreTrainedModel, teacher: PretrainedConfig, folder: Path) -> None:
    """Save a student with its logits, to be checked by another process (``load_errors``).

    Args:
        student: a small student.
        teacher: the config of its teacher.
        folder: a new folder for this student, inside the folder that ``load_errors`` is given.
    """
    one_expert_at_a_time(student)
    student.save_pretrained(folder / "student")
    teacher.save_pretrained(folder / "teacher")
    tokens = contract_tokens(student.config.get_text_config().vocab_size)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    seen = {"tokens": tokens, "logits": logits_of(student, tokens).contiguous()}
    save_file(seen | {"parameters": torch.tensor(parameters)}, folder / "seen.safetensors")


def load_errors(folder: Path) -> dict[str, str | None]:
    """Check every student saved in a folder in a new process, which imports nothing of this project.

    Returns:
        What is wrong with each student, or None, by the name of its folder.

    Raises:
        RuntimeError: the process failed as a whole.
    """
    command = [sys.executable, "-I", stock_process.__file__, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that reads students failed: {done.stderr[-500:]}")
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found
