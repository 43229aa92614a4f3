"""How fast a model answers: prefill and decode, beside the teacher, by part, and kept for the machine.

Prefill reads a whole prompt in one pass and is bound by arithmetic; decode makes one token at a time
from the KV cache and is bound by memory traffic and by the calls of each layer. Student and teacher
are timed in turns, and the median of the ratios is what counts: whatever else slows the machine
down slows both.

Kept outside the runs, one line an entry, so that each architecture is measured once on a machine and
a run that is repeated or resumed sees the figures it saw before.

Hooks, and on a GPU waiting for the device at each of them, take time of their own and keep calls from
overlapping. So only shares are told; what a whole pass takes is measured without hooks (see ``latency``).
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


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is timed."""

    batch: int = 1
    """Sequences at once."""
    prompt: int = 128
    """Tokens of each prompt."""
    answer: int = 32
    """Tokens made after it; latency is that of prompt and answer together."""
    timed_answer: int = 6
    """Tokens of the answer that are timed, the rest being alike."""
    repeats: int = 7
    """Of which the median is taken."""


@dataclass(frozen=True)
class Latency:
    """One model's times, in milliseconds for the whole batch."""

    prefill_ms: float
    decode_ms_per_token: float
    answer: int
    """Tokens of the answer."""

    @property
    def total_ms(self) -> float:
        """Prompt and answer."""
        return self.prefill_ms + self.answer * self.decode_ms_per_token

    def scaled(self, prefill: float, decode: float) -> Latency:
        """These times multiplied by two ratios."""
        return Latency(self.prefill_ms * prefill, self.decode_ms_per_token * decode, self.answer)


def measure_latency(model: PreTrainedModel, workload: Workload) -> Latency:
    """The median times of one model alone; for the teacher, as the reference of all students."""
    rounds = [time_once(model, workload) for _ in range(workload.repeats + 1)][1:]
    prefill = statistics.median(prefill for prefill, _ in rounds)
    return Latency(prefill, statistics.median(decode for _, decode in rounds), workload.answer)


def measure_latency_beside(
    model: PreTrainedModel, teacher: PreTrainedModel, reference: Latency, workload: Workload
) -> Latency:
    """A student's times: the teacher's reference times the median ratios of interleaved rounds."""
    ratios = []
    for number in range(workload.repeats + 1):
        mine, theirs = time_once(model, workload), time_once(teacher, workload)
        if number:  # the first round warms up
            ratios.append((mine[0] / theirs[0], mine[1] / theirs[1]))
    prefill = statistics.median(prefill for prefill, _ in ratios)
    return reference.scaled(prefill, statistics.median(decode for _, decode in ratios))


@torch.no_grad()
def time_once(model: PreTrainedModel, workload: Workload) -> tuple[float, float]:
    """(prefill, decode per token) in milliseconds, once."""
    prompt = torch.ones(workload.batch, workload.prompt, dtype=torch.long, device=model.device)
    began = synchronized_time(model.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = synchronized_time(model.device)
    for _ in range(workload.timed_answer):
        token: Tensor = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    done = synchronized_time(model.device)
    return (read - began) * 1e3, (done - read) * 1e3 / workload.timed_answer


def synchronized_time(device: torch.device) -> float:
    """The clock in seconds, when all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


#: Fields of a config that do not change how long a forward pass takes.
_IRRELEVANT = ("transformers_version", "architectures", "_name_or_path", "torch_dtype", "dtype")


class LatencyCache:
    """Measured latencies in a file of JSON lines; an unreadable line is as if it were not there."""

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
        """The latency under a key; measured and written down if it is not known."""
        if key not in self.entries:
            latency = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:  # a line begins anew, even after one that was cut off
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
    """What a latency depends on: the sizes, those of the teacher, the machine, the libraries, the load."""
    sizes = [
        {name: value for name, value in c.to_dict().items() if name not in _IRRELEVANT}
        for c in (config, reference)
    ]
    machine = [device_name(device), torch.get_num_threads(), str(dtype)]
    versions = [torch.__version__, transformers.__version__]
    content = json.dumps([sizes, machine, versions, asdict(load)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """The name of a GPU or of the processor, and of the host."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} on {platform.node()}"
    return f"{_processor()}, {os.cpu_count()} cores, on {platform.node()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "CPU")


#: What no part of a model accounts for: norms, additions, masks, the calls of the layers themselves.
REST = "rest"
Shares = dict[str, float]
"""Of each part; their sum is 1."""


@dataclass(frozen=True)
class LatencyShares:
    """How prefill and decode divide among the parts of a model."""

    prefill: Shares
    decode: Shares


def latency_shares(model: PreTrainedModel, modules: Mapping[str, str], workload: Workload) -> LatencyShares:
    """The median share of each part over the repeats of a workload, after one to warm up.

    Args:
        model: in evaluation mode.
        modules: names of modules and the part that each works for; none within another.
        workload: what is timed.
    """
    rounds: list[tuple[Shares, Shares]] = []
    for number in range(workload.repeats + 1):
        watch = _Watch(model)
        with watch.on(modules):
            time_once(model, workload)
        if number:
            rounds.append((_shares(watch.passes[:1]), _shares(watch.passes[1:])))
    prefill, decode = zip(*rounds, strict=True)
    return LatencyShares(_medians(prefill), _medians(decode))


class _Watch:
    """Times the passes of a model, and of each the parts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.passes: list[dict[str, float]] = []
        """Of each pass the seconds of its parts, and of the whole under ``REST``."""
        self._began: list[float] = []

    @contextmanager
    def on(self, modules: Mapping[str, str]) -> Iterator[None]:
        """Time all passes within the context."""
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
    """Of all passes together."""
    seconds = {part: sum(one[part] for one in passes) for part in passes[0]}
    whole = seconds.pop(REST)
    shares = {part: spent / whole for part, spent in seconds.items()}
    return shares | {REST: max(0.0, 1 - sum(shares.values()))}


def _medians(rounds: tuple[Shares, ...]) -> Shares:
    """The median of each part, made to sum to 1 again."""
    middle = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
    whole = sum(middle.values())
    return {part: share / whole for part, share in middle.items()}
