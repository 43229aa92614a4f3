"""How fast a model answers: prefill and decode, measured beside the teacher.

Prefill reads a whole prompt in one pass and is bound by arithmetic; decode makes one token at a time
from the KV cache and is bound by memory traffic and by the calls of each layer. Student and teacher
are timed in turns, and the median of the ratios is what counts: whatever else slows the machine
down slows both.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


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


def measure(model: PreTrainedModel, workload: Workload) -> Latency:
    """The median times of one model alone; for the teacher, as the reference of all students."""
    rounds = [time_once(model, workload) for _ in range(workload.repeats + 1)][1:]
    prefill = statistics.median(prefill for prefill, _ in rounds)
    return Latency(prefill, statistics.median(decode for _, decode in rounds), workload.answer)


def measure_beside(
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
    began = now(model.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = now(model.device)
    for _ in range(workload.timed_answer):
        token: Tensor = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    done = now(model.device)
    return (read - began) * 1e3, (done - read) * 1e3 / workload.timed_answer


def now(device: torch.device) -> float:
    """The clock in seconds, when all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
