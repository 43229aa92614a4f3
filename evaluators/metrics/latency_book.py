"""Latencies already measured on this machine: how fast an architecture is there depends on no weight.

Kept outside the runs, one line an entry, so that each architecture is measured once on a machine and
a run that is repeated or resumed sees the figures it saw before.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig

from evaluators.metrics.latency import Latency, Workload

#: Fields of a config that do not change how long a forward pass takes.
_IRRELEVANT = ("transformers_version", "architectures", "_name_or_path", "torch_dtype", "dtype")


class LatencyBook:
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
