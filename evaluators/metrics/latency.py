"""Latency: prefill and decode of a model, paired with the teacher, cached per machine, and split by part.

Prefill reads a whole prompt in one pass and is bound by arithmetic. Decode makes one token at a time from
the KV cache and is bound by memory traffic and by the calls of each layer. Student and teacher are timed in
turns, and the median of their ratios counts: any other load on the machine slows both.

``LatencyCache`` is a file outside the run directories. So each architecture is measured once per machine,
and a run that is repeated or resumed sees the same figures again.

``latency_shares`` times the parts of a model by hooks. Hooks take time themselves, and on a GPU they have to
wait for the device, so calls no longer overlap. So it returns shares only, never times.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from evaluators.huggingface.caching import cache_argument, cache_of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The generation task that is timed."""

    batch: int = 1
    """Sequences per batch."""
    prompt: int = 128
    """Tokens per prompt."""
    answer: int = 32
    """Tokens generated after the prompt; latency is that of prompt and answer together."""
    timed_answer: int = 6
    """Tokens of the answer that are timed; the others are assumed to take as long."""
    repeats: int = 7
    """Repeats, of which the median is taken."""


@dataclass(frozen=True)
class Latency:
    """A model's times, in milliseconds for the whole batch."""

    prefill_ms: float
    decode_ms_per_token: float
    answer: int
    """Tokens of the answer."""

    @property
    def total_ms(self) -> float:
        """Time of prompt and answer together."""
        return self.prefill_ms + self.answer * self.decode_ms_per_token

    def scaled(self, prefill: float, decode: float) -> Latency:
        """Return these times, with prefill and decode each multiplied by a ratio."""
        return Latency(self.prefill_ms * prefill, self.decode_ms_per_token * decode, self.answer)


def measure_latency(model: PreTrainedModel, workload: Workload) -> Latency:
    """Return the median times of one model alone; the teacher's are the reference for all students."""
    rounds = [time_once(model, workload) for _ in range(workload.repeats + 1)][1:]
    prefill = statistics.median(prefill for prefill, _ in rounds)
    return Latency(prefill, statistics.median(decode for _, decode in rounds), workload.answer)


def measure_latency_beside(
    model: PreTrainedModel, teacher: PreTrainedModel, reference: Latency, workload: Workload
) -> Latency:
    """Return a student's times: the teacher's reference, scaled by median ratios of interleaved rounds."""
    ratios = []
    for number in range(workload.repeats + 1):
        own, paired = time_once(model, workload), time_once(teacher, workload)
        if number:  # the first round warms up
            ratios.append((own[0] / paired[0], own[1] / paired[1]))
    prefill = statistics.median(prefill for prefill, _ in ratios)
    return reference.scaled(prefill, statistics.median(decode for _, decode in ratios))


@torch.no_grad()
def time_once(model: PreTrainedModel, workload: Workload) -> tuple[float, float]:
    """Time a workload once; return (prefill, decode per token) in milliseconds."""
    argument = cache_argument(model)
    prompt = torch.ones(workload.batch, workload.prompt, dtype=torch.long, device=model.device)
    began = synchronized_time(model.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = synchronized_time(model.device)
    for _ in range(workload.timed_answer):
        token: Tensor = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, use_cache=True, **{argument: cache_of(output)})
    done = synchronized_time(model.device)
    return (prefilled - began) * 1e3, (done - prefilled) * 1e3 / workload.timed_answer


def synchronized_time(device: torch.device) -> float:
    """Wait until the device has finished all work, and return the clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


#: Config fields that do not affect the time of a forward pass.
_IRRELEVANT = ("transformers_version", "architectures", "_name_or_path", "torch_dtype", "dtype")


class LatencyCache:
    """Measured latencies in a JSON Lines file; unreadable lines are ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Latency] = {}
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self.entries.setdefault(entry.pop("key"), Latency(**entry))
        except (ValueError, KeyError, TypeError, AttributeError):
            return

    def look_up(self, key: str, measure: Callable[[], Latency]) -> Latency:
        """Return the latency under a key; measure and store it if it is missing."""
        if key not in self.entries:
            latency = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:  # the newline comes first, in case the last line was cut off
                file.write("\n" + json.dumps({"key": key, **asdict(latency)}))
            self.entries[key] = latency
        return self.entries[key]


def latency_key(
    config: PretrainedConfig,
    reference: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    load: Workload,
) -> str:
    """Hash all that a latency depends on: both configs, machine, dtype, library versions and workload."""
    sizes = [
        {name: value for name, value in c.to_dict().items() if name not in _IRRELEVANT}
        for c in (config, reference)
    ]
    machine = [device_name(device), torch.get_num_threads(), str(dtype)]
    versions = [torch.__version__, transformers.__version__]
    content = json.dumps([sizes, machine, versions, asdict(load)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or processor, and of the host."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} on {platform.node()}"
    return f"{_processor()}, {os.cpu_count()} cores, on {platform.node()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "CPU")


#: The time outside all parts of a model: norms, residual additions, masks, the calls of the layers.
REST = "rest"
Shares = dict[str, float]
"""The share of each part; they sum to 1."""


@dataclass(frozen=True)
class LatencyShares:
    """The shares of a model's parts in prefill and decode."""

    prefill: Shares
    decode: Shares


def latency_shares(model: PreTrainedModel, modules: Mapping[str, str], workload: Workload) -> LatencyShares:
    """Return the median share of each part over the repeats of a workload, after a warm-up.

    Args:
        model: in evaluation mode.
        modules: maps names of modules to the part that each belongs to; none may lie inside another.
        workload: what is timed.
    """
    rounds: list[tuple[Shares, Shares]] = []
    for number in range(workload.repeats + 1):
        timer = _PassTimer(model)
        with timer.on(modules):
            time_once(model, workload)
        if number:
            rounds.append((_shares(timer.passes[:1]), _shares(timer.passes[1:])))
    prefill, decode = zip(*rounds, strict=True)
    return LatencyShares(_medians(prefill), _medians(decode))


class _PassTimer:
    """Times the forward passes of a model and their parts by hooks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.passes: list[dict[str, float]] = []
        """For each pass the seconds of its parts, and of the whole pass under ``REST``."""
        self._began: list[float] = []

    @contextmanager
    def on(self, modules: Mapping[str, str]) -> Iterator[None]:
        """Within the context, time all passes."""
        with ExitStack() as stack:
            handles = [self.model.register_forward_pre_hook(self._new_pass)]
            for name, part in {"": REST, **modules}.items():
                module = self.model.get_submodule(name)
                handles.append(module.register_forward_pre_hook(self._begin))
                handles.append(module.register_forward_hook(self._ends(part)))
            for handle in handles:
                stack.callback(handle.remove)
            yield

    def _new_pass(self, *_: Any) -> None:
        self.passes.append(defaultdict(float))

    def _begin(self, *_: Any) -> None:
        self._began.append(synchronized_time(self.model.device))

    def _ends(self, part: str) -> Any:
        def end(*_: Any) -> None:
            self.passes[-1][part] += synchronized_time(self.model.device) - self._began.pop()

        return end


def _shares(passes: list[dict[str, float]]) -> Shares:
    """Return the shares over all passes together."""
    seconds = {part: sum(one[part] for one in passes) for part in passes[0]}
    whole = seconds.pop(REST)
    shares = {part: spent / whole for part, spent in seconds.items()}
    return shares | {REST: max(0.0, 1 - sum(shares.values()))}


def _medians(rounds: tuple[Shares, ...]) -> Shares:
    """Return the median of each part, normalised to sum to 1."""
    middle = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
    whole = sum(middle.values())
    return {part: share / whole for part, share in middle.items()}
