"""A process of its own that asks a hub: the hub's client reads its settings once, when imported.

    python -m tests.hub_client

One request and one answer a line, both JSON; see ``HubClient``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class HubClient:
    """The process, seen from the tests.

    Args:
        endpoint: the hub's address.
        home: folder for what it fetches.
        offline: whether HF_HUB_OFFLINE is set.
    """

    def __init__(self, endpoint: str, home: Path, offline: bool = False) -> None:
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "3",
            "HF_HUB_ETAG_TIMEOUT": "3",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
        }
        others = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
        }
        self.home = home
        self.printed = home.with_suffix(".stderr")
        with self.printed.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.hub_client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**others, **settings},
            )

    def __enter__(self) -> HubClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def ask(self, call: str, **arguments: object) -> dict[str, Any]:
        """Load a teacher, a config or a corpus.

        Returns:
            What it is under ``answer``, or the message for the user under ``refusal``; under ``log``
            what was logged.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.printed.read_text()
        answer: dict[str, Any] = json.loads(line)
        assert "traceback" not in answer, answer["traceback"]
        return answer

    def refused(self, call: str, **arguments: object) -> str:
        """The message with which a call is refused."""
        answer = self.ask(call, **arguments)
        assert "refusal" in answer, answer
        message = str(answer["refusal"])
        assert "\n" not in message
        return message


def _teacher(id: str, revision: str | None = None, dtype: str = "float32") -> dict[str, object]:
    import torch

    from evaluators.teacher import load_teacher

    teacher = load_teacher(id, revision=revision, device=torch.device("cpu"), dtype=getattr(torch, dtype))
    return {"id": teacher.id, "fingerprint": teacher.fingerprint, "tokens": len(teacher.tokenizer)}


def _config(id: str, revision: str | None = None) -> dict[str, object]:
    from evaluators.teacher import load_config

    return {"type": load_config(id, revision).model_type}


def _corpus(data: str, tokenizer: str, cache: str, block: int = 16) -> dict[str, object]:
    from transformers import AutoTokenizer

    from evaluators.corpus.corpus import CorpusRequest, read_corpus

    request = CorpusRequest(
        data=data, block=block, calibration_blocks=4, distillation_blocks=20, validation_blocks=4
    )
    corpus = read_corpus(request, AutoTokenizer.from_pretrained(tokenizer), Path(cache))
    sizes = {split.value: len(tokens) for split, tokens in corpus.blocks.items()}
    return {"id": corpus.id, "fingerprint": corpus.fingerprint, "blocks": sizes}


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _serve() -> None:
    gc.disable()  # it lives shortly, and imports much
    from space.input_error import InputError

    # The libraries wait longer and longer before they try again; here nothing gets better by waiting.
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.01))
    logging.getLogger("evaluators").setLevel(logging.INFO)
    calls: dict[str, Callable[..., dict[str, object]]]
    calls = {"teacher": _teacher, "config": _config, "corpus": _corpus}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, object] = {}
        lines = _Lines()
        logging.getLogger("evaluators").addHandler(lines)
        try:
            answer["answer"] = calls[asked["call"]](**asked["arguments"])
        except InputError as refusal:
            answer["refusal"] = str(refusal)
        except Exception:
            answer["traceback"] = traceback.format_exc()
        logging.getLogger("evaluators").removeHandler(lines)
        answer["log"] = lines.lines
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
