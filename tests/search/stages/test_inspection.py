"""The last look at the models of a run: each once, kept as it comes, and a failure ends nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from evaluators.corpus.corpus import Corpus
from search.rungs.evaluation import Retrained
from search.stages import benchmarks, inspection
from search.stages.inspection import Breakdown, Inspection, LatencyBreakdown, TextSample, inspect
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Architecture

SPENT = LatencyBreakdown(2.0, 1.0, 32, {"rest": 2.0}, {"rest": 1.0})
MODELS = ["models/a", "models/b", "models/a", None]
Fails = Callable[[str], Exception | None]


def nothing(model: str) -> None:
    return None


class Looker:
    """Stands in for models: takes down which were looked at, and with which layers."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, fails: Fails = nothing) -> None:
        self.folder, self.tokenizer, self.fails = folder, tokenizer, fails
        self.looked: dict[str, list[int]] = {}

    def run(self, fingerprint: str = "a teacher", text: str = "a text") -> Inspection:
        """Look at the teacher and two models, one of them in two lists, and random weights."""
        tokens = torch.tensor([[0, *self.tokenizer("one two three " * 20)["input_ids"]][:64]] * 2)
        config = SimpleNamespace(max_position_embeddings=64)
        teacher = SimpleNamespace(
            model=SimpleNamespace(name="teacher", config=config),
            tokenizer=self.tokenizer,
            fingerprint=fingerprint,
            on_device=nullcontext,
        )
        context = SimpleNamespace(
            teacher=teacher,
            directory=self.folder,
            corpus=Corpus("text", tokens[:0], tokens[:0], tokens, 1, text),
            axis_map=SimpleNamespace(teacher=Architecture(64, 128, 4, 2, 5)),
            kept_layers=lambda architecture: [0, 2],
        )
        models = [Retrained(Architecture(64, 96, 4, 2, 2), "search", 2, 1, 1, 1, [], path) for path in MODELS]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                benchmarks, "reload", lambda _, at: SimpleNamespace(name=str(at.relative_to(self.folder)))
            )
            patch.setattr(inspection, "sample_texts", self._write)
            patch.setattr(inspection, "breakdown_of", self._take_apart)
            console = Console(quiet=True)
            return inspect(cast(RunContext, context), models, RunDirectory(self.folder), console)

    def _write(self, model: Any, *_: Any) -> list[TextSample]:
        if (error := self.fails(model.name)) is not None:
            raise error
        return [TextSample(model.name, ended=False)]

    def _take_apart(self, _: Any, model: Any, kept: list[int]) -> Breakdown:
        self.looked[model.name] = kept
        return Breakdown({"mlp": 7}, SPENT)


EVERYTHING = {"teacher": [0, 1, 2, 3, 4], "models/a": [0, 2], "models/b": [0, 2]}


def test_every_model_is_looked_at_once(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    looker = Looker(tmp_path, byte_tokenizer)
    found = looker.run()
    assert looker.looked == EVERYTHING
    assert set(found.models) == set(EVERYTHING)
    assert found.of("models/a")["continuations"] == [{"text": "models/a", "ended": False}]
    assert found.of("models/a")["breakdown"]["latency"]["prefill_ms"] == 2.0
    assert found.of(None) == {"continuations": [], "breakdown": None}
    again = Looker(tmp_path, byte_tokenizer)
    assert again.run() == found
    assert again.looked == {}


def test_what_was_found_before_a_kill_is_kept(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    def killed(model: str) -> Exception | None:
        if model == "models/a":
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        Looker(tmp_path, byte_tokenizer, killed).run()
    looker = Looker(tmp_path, byte_tokenizer)
    looker.run()
    assert list(looker.looked) == ["models/a", "models/b"]


def test_a_model_that_fails_is_left_out_and_tried_again(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    def broken(model: str) -> Exception | None:
        return RuntimeError("out of memory") if model == "models/a" else None

    found = Looker(tmp_path, byte_tokenizer, broken).run()
    assert set(found.models) == {"teacher", "models/b"}
    assert found.of("models/a") == {"continuations": [], "breakdown": None}
    looker = Looker(tmp_path, byte_tokenizer)
    assert set(looker.run().models) == set(EVERYTHING)
    assert list(looker.looked) == ["models/a"]


def test_a_full_disk_is_an_error(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    def full(model: str) -> Exception | None:
        return OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Looker(tmp_path, byte_tokenizer, full).run()


@pytest.mark.parametrize("other", [{"fingerprint": "another"}, {"text": "another"}])
def test_of_another_teacher_or_text_everything_is_looked_at_anew(
    other: dict[str, str], tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    Looker(tmp_path, byte_tokenizer).run()
    looker = Looker(tmp_path, byte_tokenizer)
    looker.run(**other)
    assert looker.looked == EVERYTHING
    assert json.loads((tmp_path / "inspection.json").read_text())["of"] == [
        other.get("fingerprint", "a teacher"),
        other.get("text", "a text"),
    ]
