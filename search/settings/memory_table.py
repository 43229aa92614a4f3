"""The ledger of memory in words: a line a stage, and what stays where."""

from __future__ import annotations

from typing import Any

from evaluators.distillation.targets.choice import size_text
from evaluators.metrics.memory import Parts, StageNeeds
from search.settings.ledger import MARGIN, Ledger
from search.settings.memory_counts import COUNTS

#: Parts of a stage that are named in its line, the largest first.
_NAMED = 4


def memory_lines(ledger: Ledger) -> list[str]:
    """Return the table: what there is and how it is used, then a line for each stage."""
    there = ledger.capacity
    if there.shared:
        has = f"this host has {_size(there.host)}"
    else:
        host = "its host is not known here" if there.host is None else f"the host {_size(there.host)}"
        card = "a card of" if there.told else "the device has"
        has = f"{card} {_size(there.device)}, {host}"
    lines = [f"{has}, of which {MARGIN:.0%} stay free; {_placement_in_words(ledger)}"]
    width = max(len(needs.stage) for needs in ledger.stages)
    return lines + [f"{needs.stage.ljust(width)}  {_needs_in_words(needs)}" for needs in ledger.stages]


def memory_rows(ledger: Ledger) -> dict[str, Any]:
    """Return the table for programs, in bytes."""
    return {
        "device": ledger.capacity.device,
        "host": ledger.capacity.host,
        "placement": vars(ledger.placement),
        "optimizer": ledger.optimizer.value,
        "estimated": sorted(COUNTS.estimated),
        "stages": [
            {"stage": needs.stage, "device": dict(needs.device), "host": dict(needs.host)}
            for needs in ledger.stages
        ],
    }


def _needs_in_words(needs: StageNeeds) -> str:
    found = [
        f"{size_text(sum(parts.values()))} of the {where} ({_largest(parts)})"
        for where, parts in (("device", needs.device), ("host", needs.host))
        if parts
    ]
    if len(found) == 2:  # what the host holds beside a device is seldom short
        found[1] = f"{size_text(needs.host_bytes)} of the host"
    return ", ".join(found)


def _largest(parts: Parts) -> str:
    named = sorted(parts.items(), key=lambda part: -part[1])[:_NAMED]
    return ", ".join(f"{name} {size_text(size)}" for name, size in named)


def _placement_in_words(ledger: Ledger) -> str:
    placement, shared = ledger.placement, ledger.capacity.shared
    words = []
    if placement.layer_by_layer:
        words.append("the teacher's layers are loaded in turn")
    elif not placement.teacher_stays:
        words.append("the teacher leaves the device while students train")
    if not placement.sorted_stay:
        words.append(f"sorted weights are {'mapped from a file' if shared else 'on the host'}")
    if placement.micro_batch is not None:
        words.append(f"{placement.micro_batch} blocks a micro-batch")
    if placement.recompute:
        words.append("activations are recomputed")
    words.append(f"trained by {ledger.optimizer}")
    if COUNTS.estimated:
        words.append(f"activations of {', '.join(sorted(COUNTS.estimated))} are estimates")
    if not (placement.layer_by_layer or not placement.teacher_stays or not placement.sorted_stay):
        words.insert(0, "everything stays")
    return ", ".join(words)


def _size(size: int | None) -> str:
    return "a memory that cannot be found out" if size is None else size_text(size)
