"""Where in a model the time of prefill and decode goes, told by hooks around its modules.

Hooks, and on a GPU waiting for the device at each of them, take time of their own and keep calls from
overlapping. So only shares are told; what a whole pass takes is measured without hooks (see ``latency``).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from evaluators.metrics import latency
from evaluators.metrics.latency import Workload

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
            latency.time_once(model, workload)
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
        self._began.append(latency.now(self.model.device))

    def _ends(self, part: str) -> Any:
        def end(*_: Any) -> None:
            self.passes[-1][part] += latency.now(self.model.device) - self._began.pop()

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
