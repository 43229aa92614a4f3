"""Trainings in several processes at once; what they come to is written to a folder.

Started as ``torch.distributed.run`` would; ``alone`` is what they are compared to.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluators.distillation.checkpoint import read_metadata
from evaluators.distillation.loop import DistillationResult
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Batch
from tests.evaluators.distillation import whole_training
from tests.evaluators.distillation.conftest import forget
from tests.evaluators.distillation.training import BLOCK, TOKENS, loss_of
from tests.evaluators.distillation.whole_training import OUT_OF_MEMORY, Small, plan, train
from tests.evaluators.tiny_models import random_tokens, tiny_student, weights

#: Of some blocks nothing, so that a process has whole micro-batches without anything to learn.
LEARNT = (random_tokens(len(TOKENS), BLOCK, seed=2) > 18) & (torch.arange(len(TOKENS)) % 3 > 0)[:, None]
#: By name: blocks a step, and the arguments of ``train``.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "even": (4, {}),
    "uneven, by single blocks": (5, {"most": 1, "states": True}),
    "more processes than blocks": (1, {"states": True}),
    "of some tokens": (5, {"most": 1, "states": True, "learnt": LEARNT}),
}
#: In the slow tests: a head that is the embedding, and what else differs in the blocks that a process reads.
MORE = ("even True", "more processes than blocks False", "of some tokens False")
FEW = ("even False", "uneven, by single blocks False")
STEPS = 8


def main(folder: Path, kind: str, trained: Sequence[str] = FEW) -> None:
    """Train cases, named with whether the head is the embedding; the first process writes."""
    gc.freeze()
    make = {"alone": _plain, "replicated": _plain, "sharded": _sharded}[kind]
    for name, (blocks, options) in CASES.items():
        for tied in (False, True):
            if f"{name} {tied}" not in trained:
                continue
            _keep(folder, f"{kind} {name} {tied}", make(), plan(STEPS, blocks), tied, options)
    if kind == "alone" or trained != FEW:
        return
    _resume(folder, kind, make)
    if kind == "replicated":
        _run_out(folder, make)
        _count_exchanges(folder, make)
        _train_in_eight_bits(folder)


def _plain() -> Accelerator:
    forget()
    return Accelerator(cpu=True)


def _sharded() -> Accelerator:
    accelerator = _plain()
    shard()
    return accelerator


def shard() -> None:
    """Accelerate shards on accelerators alone, so it is told here that this is one."""
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="TRANSFORMER_BASED_WRAP"
    )
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def _keep(
    folder: Path, name: str, accelerator: Accelerator, schedule: Schedule, tied: bool, options: dict[str, Any]
) -> None:
    student = tiny_student(tie_word_embeddings=tied)
    path = folder / f"{name} checkpoint.safetensors"
    outcome = train(student, accelerator, schedule, path=path, **options)
    _write(folder, name, accelerator, student, outcome, path)


def _write(
    folder: Path,
    name: str,
    accelerator: Accelerator,
    student: nn.Module,
    outcome: DistillationResult,
    path: Path,
) -> None:
    assert not any(type(module).__name__.startswith("FSDP") for module in student.modules())
    assert loss_of(student) == outcome.curve[-1][1]  # type: ignore[arg-type]
    values = weights(student)
    if accelerator.is_main_process:
        save_file(values, folder / f"{name}.safetensors")
        about = read_metadata(path) or {}
        curve = [loss for _, loss in outcome.curve]
        found = {"recent": about["recent"], "curve": curve}
        (folder / f"{name}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()


def _resume(folder: Path, kind: str, make: Callable[[], Accelerator]) -> None:
    """Stopped in the sixth step, and again from the start."""
    accelerator, calls = make(), count()

    def interrupt(tokens: int) -> None:
        if next(calls) == 6:
            raise KeyboardInterrupt

    path = folder / f"{kind} stopped checkpoint.safetensors"
    files: dict[str, Any] = {"path": path, "best": folder / f"{kind} best.safetensors"}
    options = CASES["uneven, by single blocks"][1]
    try:
        train(tiny_student(), accelerator, plan(STEPS, 5), advance=interrupt, **files, **options)
    except KeyboardInterrupt:
        accelerator.wait_for_everyone()
    told: list[int] = []
    accelerator, student = make(), tiny_student()
    outcome = train(student, accelerator, plan(STEPS, 5), advance=told.append, **files, **options)
    assert told[0] == 5 * plan(STEPS, 5).tokens_per_step
    _write(folder, f"{kind} resumed", accelerator, student, outcome, path)


class Cramped(Small):
    """Only one of the processes runs out of memory."""

    def batch(self, numbers: Tensor) -> Batch:
        if len(numbers) > 1 and PartialState().process_index == 1:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return super().batch(numbers)


def _run_out(folder: Path, make: Callable[[], Accelerator]) -> None:
    made, small = list[Small](), whole_training.Small

    def cramped(most: int, states: bool) -> Small:
        made.append(Cramped(most, states))
        return made[-1]

    vars(whole_training)["Small"] = cramped
    _keep(folder, "replicated cramped", make(), plan(STEPS), False, {})
    vars(whole_training)["Small"] = small
    assert {len(numbers) for numbers in made[0].asked[1:]} == {1}, made[0].asked


def _count_exchanges(folder: Path, make: Callable[[], Accelerator]) -> None:
    """How often gradients are exchanged in steps of three micro-batches a process."""
    accelerator, calls = make(), count()
    prepare = accelerator.prepare

    def prepare_and_count(module: nn.Module, optimizer: object) -> Any:
        wrapped, prepared = prepare(module, optimizer)

        def hook(state: None, bucket: Any) -> Any:
            next(calls)
            work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
            return work.get_future().then(lambda future: future.value()[0])

        hook.__annotations__.clear()  # which PyTorch compares, but not as text
        wrapped.register_comm_hook(None, hook)
        return wrapped, prepared

    accelerator.prepare = prepare_and_count
    train(tiny_student(), accelerator, plan(STEPS, 6), most=1, times=0)
    (folder / "exchanges.json").write_text(json.dumps(next(calls)))


def _train_in_eight_bits(folder: Path) -> None:
    """Processes that differ in their random state; each writes what it came to."""
    forget()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    student = tiny_student(hidden_size=64, intermediate_size=65)
    train(student, accelerator, plan(STEPS, 5), most=1, optimizer=OptimizerName.ADAMW_8BIT)
    save_file(weights(student), folder / f"eight bits {accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    for given in ("replicated", "sharded"):
        main(Path(sys.argv[1]), given, tuple(sys.argv[2:]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
