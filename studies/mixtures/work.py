"""The runs of the study: a student for each mixture and order of the text, measured on both kinds of text."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.corpus import Corpus, CorpusRequest, read_corpus
from evaluators.importance.method import Depth, Method
from evaluators.importance.rank import rank
from evaluators.metrics.loss import validation_loss
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import Setting
from studies.mixtures.chats import chats_of_books, real_chats, write_chats

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("mixture", "steps", "seed"))
#: Shares of books and of conversations. The last is that of NVIDIA's recipe for chat models.
MIXTURES: Mapping[str, tuple[float, float]] = {"books": (1, 0), "chats": (0, 1), "both": (0.3, 0.7)}
SEEDS = (0, 1)
_PROMPTS, _ANSWER_TOKENS, _VALIDATION_TOKENS = 10, 200, 16384


class Texts:
    """The books and the conversations, as files."""

    def __init__(self, books: Path, chats: Path, folder: Path) -> None:
        """Write both kinds of text to files; the last real conversations are for prompts alone.

        Every other book is asked about and is not among the books, so that neither text quotes what is held
        out of the other.
        """
        real, lines = real_chats(chats), books.read_text(encoding="utf-8").splitlines(keepends=True)
        self.prompts = [turns[0]["content"] for turns in real[-_PROMPTS:]]
        read = folder / "books.jsonl"
        read.write_text("".join(lines[::2]), encoding="utf-8")
        conversations = [*real[:-_PROMPTS], *chats_of_books(lines[1::2])]
        self.files = {"books": read, "chats": write_chats(conversations, folder / "chats.jsonl")}

    def mixture(self, name: str) -> tuple[str, ...]:
        """The texts of a mixture, as ``--data`` names them."""
        used = [
            (file, share) for file, share in zip(self.files.values(), MIXTURES[name], strict=True) if share
        ]
        return tuple(f"{file}={share:g}" if len(used) > 1 else str(file) for file, share in used)


def work(setting: Setting, books: Path, chats: Path, steps: int, threads: int) -> None:
    """Run what is missing; results are written as they come."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        texts = Texts(books, chats, Path(folder))
        for name in MIXTURES:
            missing = RESULTS.missing([{"mixture": name, "steps": steps, "seed": seed} for seed in SEEDS])
            students = Students(setting, texts, name, steps, Path(folder)) if missing else None
            for about in missing:
                assert students is not None
                row = {**about, **students.trained(steps, about["seed"])}
                RESULTS.add(row)
                print(row, file=sys.stderr, flush=True)


class Students:
    """Makes and trains the students of a teacher that was ranked on one mixture."""

    def __init__(self, setting: Setting, texts: Texts, name: str, steps: int, folder: Path) -> None:
        self.texts, self.bench = texts, Bench(setting, steps, folder / name, texts.mixture(name))
        model, tokenizer = self.bench.teacher.model, self.bench.teacher.tokenizer
        self.axis_map = verified_axis_map(model.config)
        method = Method(depth=Depth.RANDOM)  # all layers stay
        self.ranking = rank(model, self.axis_map, self.bench.corpus.calibration, "study", method=method)
        self.weights = sort_by_importance(saved_tensors(model, self.axis_map), self.axis_map, self.ranking)
        self.held_out = {
            name: _held_out(file, setting.block, tokenizer, folder / "held-out")
            for name, file in texts.files.items()
        }
        self.asked = [prompt for prompt in texts.prompts if ends(model, tokenizer, prompt)]

    def trained(self, steps: int, seed: int) -> Row:
        """Distil a student; its losses on books and on conversations, and how often it ends its turn.

        Turns are counted at those prompts at which the teacher ends its own.
        """
        student = self._student()
        measured = self.bench.distilled(student, steps, seed)
        losses = {name: _loss(student, corpus) for name, corpus in self.held_out.items()}
        taught = {f"teacher_{name}": _loss(self.bench.teacher.model, c) for name, c in self.held_out.items()}
        ended = sum(ends(student, self.bench.teacher.tokenizer, prompt) for prompt in self.asked)
        return {**measured, **losses, **taught, "ended": ended, "asked": len(self.asked)}

    def _student(self) -> PreTrainedModel:
        whole = {axis: self.axis_map.teacher[axis] for axis in self.axis_map.free}
        architecture = self.axis_map.complete({**whole, **self.bench.setting.widths})
        return extract(self.weights, self.axis_map, self.ranking, architecture)


def _held_out(file: Path, block: int, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Corpus:
    """The validation split of one text, which is the same whatever it is mixed with."""
    request = CorpusRequest(
        data=str(file),
        block=block,
        calibration_blocks=1,
        distillation_blocks=1,
        validation_blocks=_VALIDATION_TOKENS // block,
    )
    return read_corpus(request, tokenizer, cache)


def _loss(model: PreTrainedModel, corpus: Corpus) -> float:
    return validation_loss(model, corpus.validation, corpus.validation_learnt)


@torch.no_grad()
def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether a model, asked through its chat template, ends its turn within 200 tokens, chosen greedily."""
    turns = [{"role": "user", "content": prompt}]
    tokens: Any = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written: Tensor = model.generate(  # type: ignore[operator]
        **tokens, max_new_tokens=_ANSWER_TOKENS, do_sample=False
    )
    new: Sequence[int] = written[0, tokens["input_ids"].shape[1] :].tolist()
    return tokenizer.eos_token_id in new
