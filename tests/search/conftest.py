"""The command line settles the logging and signals of its process; here many share one."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from evaluators.metrics.capacity import Capacity, capacity_of
from evaluators.metrics.pace import Pace
from studies.demo.train import CONFIG
from tests.docs.walk import traced
from tests.made_once import made_once
from tests.search.runner import NAME, Runner
from tests.search.storage.postgresql import PostgreSQL, running_postgresql
from tests.space.maps import NEMOTRON_15B

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_SET_BY_THE_CONSOLE = (
    *("slimsearch", "search", "evaluators", "space"),
    *("optuna", "transformers", "accelerate", "datasets"),
)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Gives back the loggers and the signal handler that a run takes for itself."""
    loggers = [logging.getLogger(name) for name in _SET_BY_THE_CONSOLE]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    terminate, verbosity = signal.getsignal(signal.SIGTERM), optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(verbosity)
    signal.signal(signal.SIGTERM, terminate)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A folder in memory where there is one: SQLite waits for the disk at every write."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, as Playwright drives it: once in a process, which can have one of its loops alone."""
    pytest.importorskip("playwright", reason="no playwright: pip install -e '.[test]'")
    from tests.search.report.browser import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) to see pages drawn")
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that runs; a test that stops it starts it again."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    """The URL of an empty database."""
    return postgresql.new_database()


@pytest.fixture(autouse=True)
def no_device_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan times a student for ten seconds; what it makes of them is tested with known paces.

    No default amounts are too many for a night, on whatever device the tests run.
    """
    fast = Pace(1e9, 1e10, 1e-6, timed=False)
    monkeypatch.setattr("search.settings.resolution.pace_estimate", lambda *_: fast)
    monkeypatch.setattr("search.planning.plan.pace_of", lambda *_: Pace(5000.0, 40_000.0, 0.5, timed=True))


@pytest.fixture(autouse=True)
def room_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are resolved for a host of any size, unless the memory is named."""
    real = capacity_of

    def found(device: torch.device, told: int | None = None) -> Capacity:
        return Capacity(None, 2**50, shared=True) if told is None else real(device, told)

    monkeypatch.setattr("search.settings.resolution.capacity_of", found)


def _config_alone(config: PretrainedConfig, factory: pytest.TempPathFactory, name: str) -> Path:
    """A directory with config.json and no weights."""
    directory = factory.mktemp("configs") / name
    config.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def demo_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the demo teacher, without weights."""
    return _config_alone(CONFIG, tmp_path_factory, "demo-config")


@pytest.fixture(scope="session")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of the shape of Llama-3.1-8B, without weights."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    )
    return _config_alone(config, tmp_path_factory, "Llama-3.1-8B")


@pytest.fixture(scope="session")
def qwen3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of the shape of Qwen3-8B, without weights."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
    )
    return _config_alone(config, tmp_path_factory, "Qwen3-8B")


@pytest.fixture(scope="session")
def nemotron_15b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of the shape of Nemotron-4 15B, without weights."""
    return _config_alone(NEMOTRON_15B, tmp_path_factory, "nemotron-4-15b")


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory, real: Path) -> Path:
    """A fifth of the real stories, so that a pass over its validation blocks takes a fifth of the time."""

    def write(folder: Path) -> None:
        text = (real / "tinystories.txt").read_text(encoding="utf-8")
        (folder / "tinystories.txt").write_text(text[: text.index("\n\n", 160_000)], encoding="utf-8")

    return made_once(tmp_path_factory, "stories", write) / "tinystories.txt"


@pytest.fixture(scope="session")
def small_flags(real: Path, stories: Path) -> list[str]:
    """Of a whole search on stories260K that takes half a minute; flags that follow win over these."""
    return [
        *("--budget", "60%", "--study-name", NAME),
        *("--model", str(real / "stories260K"), "--data", str(stories)),
        *("--trials", "8", "--rung-tokens", "2k", "4k", "--retrain-tokens", "6k", "--seed", "7"),
    ]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_flags: list[str]) -> Path:
    """Directory of a finished run with these flags, made once by the first that asks; do not write to it.

    Beside its parent lie ``cache``, what the command printed, ``stdout``, and the stations that it came to.
    """

    def make(folder: Path) -> None:
        runner = Runner(folder, small_flags, folder / "cache")
        runner.command = traced(small_flags, "stations.json")
        done = runner.finish()
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)

    return made_once(tmp_path_factory, "small_run", make) / "runs" / NAME
