"""A whole run on a published kind of checkpoint: in 8 bits, with a tower for pictures that goes along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.stages import pipeline
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.input_error import InputError
from tests.evaluators.teacher.checkpoints import CONFIG, WEIGHTS
from tests.evaluators.teacher.test_dequantised import BLOCKS, InBlocks
from tests.evaluators.teacher.wholes import seen, tiny_whole
from tests.small_search import SMALL, write_stories, write_teacher


def write_whole_in_8_bits(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_whole("mistral3").bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    tensors = load_file(path / WEIGHTS)
    text = {name: one.float() for name, one in tensors.items() if "language_model" in name}
    InBlocks()(text)
    scales = {name for name in text if "scale" in name}
    for name in text.keys() - scales:
        text[name] = text[name] if text[name].itemsize == 1 else text[name].bfloat16()
    save_file(tensors | text, path / WEIGHTS, {"format": "pt"})
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(config | {"quantization_config": BLOCKS}))


@torch.no_grad()
def test_it_ends_with_a_model_of_text_and_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_whole_in_8_bits(tmp_path / "teacher", byte_tokenizer)
    write_stories(tmp_path / "stories.txt")
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))
    directory = RunDirectory(tmp_path / "run")
    words = [*SMALL.split(), "--budget", "60%", "--tolerance", "0.1", "--keep-towers"]
    words += ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "stories.txt")]
    with torch.enable_grad():
        summary = pipeline.run(resolve(read_flags(words)), directory, Console(quiet=True), "a command")
    [chosen] = summary["promoted"]
    path = directory.path / chosen["path"]
    text = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    whole = AutoModelForImageTextToText.from_pretrained(f"{path}-whole", dtype=torch.float32)
    tokens = torch.arange(3, 15)[None]
    assert torch.equal(whole(input_ids=tokens).logits, text(input_ids=tokens).logits)
    assert whole(**seen("mistral3")).logits.isfinite().all()


def test_a_teacher_of_text_alone_is_refused_before_any_work(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    words = [*SMALL.split(), "--budget", "60%", "--keep-towers", "--model", str(tmp_path / "teacher")]
    with pytest.raises(InputError, match="of the type llama, has one"):
        resolve(read_flags(words))


def test_what_trains_the_teacher_first_is_refused(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    words = [*SMALL.split(), "--keep-towers", "--model", str(tmp_path / "teacher")]
    with pytest.raises(InputError, match="with --correct-teacher, which trains it"):
        resolve(read_flags([*words, "--budget", "60%", "--correct-teacher", "1k"]))
    with pytest.raises(InputError, match="its second teacher is the first student"):
        read_flags([*words, "--budget", "80%,60%"])
