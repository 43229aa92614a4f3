"""What each of several processes runs: ``torchrun -m tests.evaluators.importance.one_of_many FOLDER``."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.from_disk import rank_from_disk
from evaluators.importance.method import Aggregate, Depth, Method, Width
from evaluators.importance.rank import rank
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.ranking import Ranking
from space.verification.verification import verified_axis_map
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import random_tokens, tiny_model

#: Mixtral's experts are chosen by so few tokens that some process has none for some expert.
CASES: dict[str, tuple[str, int, int, Method]] = {
    "even": ("llama", 6, 10, Method()),
    "a block more for one": ("llama", 7, 10, Method()),
    "none for one": ("llama", 1, 10, Method()),
    "few tokens": ("mixtral", 3, 2, Method()),
    "variance": ("gpt2", 5, 6, Method(batch=Aggregate.VAR, sequence=Aggregate.L2)),
    "taylor": ("gpt2", 5, 6, Method(width=Width.TAYLOR)),
    "taylor, none for one": ("mixtral", 1, 6, Method(width=Width.TAYLOR)),
    "basis": ("llama", 5, 10, Method(basis=BasisName.WEIGHTED)),
    "blocks of layers": ("llama", 5, 10, Method(depth=Depth.BLOCK_INFLUENCE)),
}
#: Products of other shapes are rounded otherwise; so that the split itself is all that could matter.
BLOCK_BY_BLOCK = patch("evaluators.importance.rank._TOKENS_AT_ONCE", 1)
FROM_DISK = "a block more for one"


@cache
def case(name: str) -> tuple[PreTrainedModel, AxisMap, Tensor, Method]:
    model_type, blocks, tokens, method = CASES[name]
    more = {"num_local_experts": 6} if model_type == "mixtral" else {}
    model = tiny_model(model_type, **more)
    turned = method.basis is not BasisName.COORDINATE
    axis_map = verified_axis_map(model.config, method.basis) if turned else map_of(model.config)
    return model, axis_map, random_tokens(blocks, tokens), method


def ranking(name: str, accelerator: Accelerator | None) -> Ranking:
    model, axis_map, calibration, method = case(name)
    with BLOCK_BY_BLOCK:
        return rank(model, axis_map, calibration, name, method=method, accelerator=accelerator)


def main(folder: Path) -> None:
    for name in CASES:
        case(name)  # maps first: of processes that know of each other, only one saves what it tries
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes > 1
    mine = folder / str(accelerator.process_index)
    mine.mkdir()
    for name in CASES:
        ranking(name, accelerator).save(mine / name)
    _, axis_map, calibration, _ = case(FROM_DISK)
    cpu = torch.device("cpu")
    with BLOCK_BY_BLOCK:
        rank_from_disk(
            folder / "teacher",
            axis_map,
            calibration,
            "from disk",
            device=cpu,
            dtype=torch.float32,
            accelerator=accelerator,
        ).save(mine / "from disk")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
