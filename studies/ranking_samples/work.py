"""What one teacher's layers cost it, block by block, and what the students are worth that follow from it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.corpus.corpus import Corpus, CorpusRequest, read_corpus
from evaluators.importance.layer_passes import DepthSetting, depends_on_states_alone, skipping_layers
from evaluators.importance.layer_removal import by_loss, without_each
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import load_teacher
from space.axes.axis_map import layer_modules
from space.verification.verification import verified_axis_map
from studies.bench.results import Results, Row
from studies.bench.setting import EMBEDDED, STORIES
from studies.ranking_samples.orders import FRACTIONS, block_losses, draws, dropped

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("kind", "teacher", "precision", "block", "dropped"))


@dataclass(frozen=True)
class Text:
    """A teacher and its text, in blocks as long as those of its scale or, for slow ones, shorter."""

    teacher: Path
    data: str
    block: int
    blocks: int
    rounded: int
    """Blocks that are scored with products in bfloat16, too."""
    validation: int
    """Blocks on which students are measured."""


def texts(large: Path | None) -> dict[str, Text]:
    """The teachers by name; the large one if its directory is given, with the books beside the real data."""
    found = {
        "embedded": Text(EMBEDDED.teacher, EMBEDDED.data, 128, 128, 32, 64),
        "stories260K": Text(STORIES.teacher, STORIES.data, 128, 128, 32, 64),
    }
    if large is not None:
        books = STORIES.teacher.parent / "books.jsonl"
        found["SmolLM2-135M-Instruct"] = Text(large, str(books), 256, 12, 2, 4)
    return found


class Scoring:
    """One teacher, its blocks, and the rows that are missing of it."""

    def __init__(self, name: str, text: Text, folder: Path) -> None:
        self.name, self.text = name, text
        device, dtype = torch.device("cpu"), torch.float32
        teacher = load_teacher(str(text.teacher), revision=None, device=device, dtype=dtype)
        request = CorpusRequest(
            data=text.data,
            block=text.block,
            calibration_blocks=text.blocks,
            distillation_blocks=1,
            validation_blocks=text.validation,
        )
        self.model = teacher.model
        self.corpus: Corpus = read_corpus(request, teacher.tokenizer, folder)
        self.axis_map = verified_axis_map(teacher.model.config)
        self.reuse = depends_on_states_alone(self.model, self.axis_map, self.corpus.calibration)

    def score_blocks(self, precision: str, number: int) -> None:
        """Add a row for each block: its loss without each layer."""
        for block in range(number):
            about = self._row("block", precision=precision, block=block)
            with bfloat16_products(self.model) if precision == "bfloat16" else nullcontext():
                self._add(about, partial(self._without_each, block))

    def _without_each(self, block: int) -> list[float]:
        tokens = self.corpus.calibration[block : block + 1]
        return without_each(DepthSetting(self.model, self.axis_map, [tokens], self.reuse), by_loss).tolist()

    def measure_students(self) -> None:
        """Add a row for each choice of dropped layers that some sample leads to: its validation loss."""
        losses = block_losses(RESULTS.rows(), self.name)
        for choice in sorted(choices_of(losses)):
            about = self._row("student", dropped=list(choice))
            self._add(about, partial(self._loss_without, choice))

    @torch.no_grad()
    def _loss_without(self, layers: Sequence[int]) -> float:
        with skipping_layers(layer_modules(self.model, self.axis_map), layers):
            return validation_loss(self.model, self.corpus.validation, self.corpus.validation_learnt)

    def _row(self, kind: str, **fields: Any) -> Row:
        return {"kind": kind, "teacher": self.name, **fields}

    def _add(self, about: Row, measure: Callable[[], Any]) -> None:
        if not _missing(about):
            return
        began = time.process_time()
        row = {**about, "loss": measure(), "cpu_seconds": round(time.process_time() - began, 1)}
        RESULTS.add(row)
        print({name: value for name, value in row.items() if name != "loss"}, file=sys.stderr, flush=True)


def _missing(about: Row) -> bool:
    return not any(all(row.get(name) == value for name, value in about.items()) for row in RESULTS.rows())


def choices_of(losses: Tensor) -> set[tuple[int, ...]]:
    """Every set of layers that is dropped by all blocks or by one of the samples.

    Args:
        losses: (blocks, L) without each layer.
    """
    samples = [list(range(len(losses)))]
    samples += [sample for fraction in FRACTIONS for sample in draws(len(losses), fraction)]
    return {dropped(losses[sample].mean(0), count) for sample in samples for count in counts(losses)}


def counts(losses: Tensor) -> tuple[int, int]:
    """How many layers are dropped: a fifth and two fifths of them."""
    layers = losses.shape[1]
    return max(1, layers // 5), max(2, 2 * layers // 5)


@contextmanager
def bfloat16_products(model: nn.Module) -> Iterator[None]:
    """Within the context, linear layers round what they read, their weights and what they return to bfloat16.

    The sums stay in float32, as in the matrix units of devices that have bfloat16; so the scores of such a
    device can be foretold on one that lacks it.
    """
    kept, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kept[name] = module.weight.data
            module.weight.data = _rounded(module.weight.data)
            handles.append(module.register_forward_pre_hook(lambda _, given: (_rounded(given[0]),)))
            handles.append(module.register_forward_hook(lambda _, __, output: _rounded(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in kept.items():
            model.get_submodule(name).weight.data = weight


def _rounded(values: Tensor) -> Tensor:
    return values.bfloat16().to(values.dtype)


def work(name: str, large: Path | None) -> None:
    """Measure what is missing of one teacher."""
    torch.set_num_threads(1)
    text = texts(large)[name]
    with tempfile.TemporaryDirectory() as folder:
        scoring = Scoring(name, text, Path(folder))
        scoring.score_blocks("float32", text.blocks)
        scoring.score_blocks("bfloat16", text.rounded)
        scoring.measure_students()
