"""Fixtures for all tests: real data, a tiny teacher, and no network."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Until all is imported and collected: to look through what stays again and again takes a quarter of the time.
gc.disable()
# Before PyTorch is loaded: threads that wait must not spin, or two busy processes slow each other tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before anything imports the hub's client, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# What the developer searches with is no business of the tests.
os.environ.pop("OPTUNA_STORAGE", None)

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from space.verification import verification
from tests import verified_once
from tests.real_models import real_folder, smollm2_folder

SEPARATOR = "<|endoftext|>"

# A machine with other work on it takes its time now and then: no example has a deadline.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Share what ``verify`` finds between the processes of the session; the first one makes the folder."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="slimsearch-verified-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ[verified_once.FOLDER] = folder
    verified_once.install(Path(os.environ[verified_once.FOLDER]))


def pytest_collection_finish() -> None:
    """From here on search for garbage, but not among what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def nothing_verified_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that change what verifying does."""
    monkeypatch.setattr(verification, "verify", verified_once.verify_anew)
    monkeypatch.setattr(verification, "discover", verified_once.discover_anew)


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of trained models and texts that are not part of the project."""
    return real_folder()


@pytest.fixture
def said_by_libraries(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the Hugging Face libraries log, which pass nothing on to the root logger."""
    libraries = [logging.getLogger(name) for name in ("transformers", "datasets", "huggingface_hub")]
    for library in libraries:
        library.addHandler(caplog.handler)
    yield caplog
    for library in libraries:
        library.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and a separator that begins documents; the context is 64 tokens."""
    vocabulary = {SEPARATOR: 0} | {
        letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SEPARATOR])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, model_max_length=64
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct; for slow tests."""
    return smollm2_folder()


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Directory of an untrained Llama of two layers with ``byte_tokenizer``; do not write to it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    directory = tmp_path_factory.mktemp("tiny_teacher")
    LlamaForCausalLM(config).save_pretrained(directory)
    byte_tokenizer.save_pretrained(directory)
    return directory
