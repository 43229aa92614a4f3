"""A student on disk is a stock model: it is read and run here, and by a process with transformers alone."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from space.axes.polynomial import Polynomial
from space.input_error import InputError
from space.verification import reload
from space.verification import stock_process as stranger
from space.verification.reload import (
    captured_warnings,
    count_error,
    load_errors,
    random_student,
    reload_error,
    save_for_check,
)
from tests.contracts.tiny import CASES, TINY, each, verified
from tests.verified_once import verify_anew

NEW = ("gpt2", "gpt_oss", "deepseek_v3")
NEW_AND_SLOW = ("nemotron_h", "mistral-tied-bfloat16-config", "qwen2-mixed-layers")
SPOILT = ("missing", "unexpected", "mismatched", "other-weights", "other-class", "no-weights", "warns")


@pytest.mark.parametrize("case", each(*CASES))
def test_a_student_is_read_back_here(case: str) -> None:
    assert reload_error(verified(case).model, verified(case).small, seed=11) is None


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What a new process says of students, some of them spoilt on disk."""
    folder = tmp_path_factory.mktemp("students")
    _save(NEW, folder)
    for how in SPOILT:
        save_for_check(
            student_of("llama-tied-biases"), verified("llama-tied-biases").small.config, folder / how
        )
        _spoil(folder / how / "student", how)
    return load_errors(folder)


def _save(cases: tuple[str, ...], folder: Path) -> None:
    for case in cases:
        save_for_check(student_of(case), verified(case).small.config, folder / case)


def student_of(case: str) -> PreTrainedModel:
    made = random_student(verified(case).model, verified(case).small, seed=7)
    assert made is not None
    return made[0]


def _spoil(student: Path, how: str) -> None:
    file, config = student / "model.safetensors", student / "config.json"
    weights, about = load_file(file), json.loads(config.read_text())
    norm = weights["model.norm.weight"]
    if how == "missing":
        del weights["model.norm.weight"]
    elif how == "unexpected":
        weights["model.norm.bias"] = torch.zeros_like(norm)
    elif how == "mismatched":
        weights["model.norm.weight"] = torch.cat([norm, norm])
    elif how == "other-weights":
        weights["model.norm.weight"] = norm + 1e-2
    elif how == "other-class":
        about |= {"model_type": "mistral", "sliding_window": 3}
    elif how == "warns":
        about["rope_parameters"] |= {"surprising": 1}
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(about))
    if how == "no-weights":
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("case", NEW)
def test_a_stranger_finds_nothing_wrong(case: str, found: dict[str, str | None]) -> None:
    assert found[case] is None


@pytest.mark.slow
def test_a_stranger_finds_nothing_wrong_in_more(tmp_path: Path) -> None:
    _save(NEW_AND_SLOW, tmp_path)
    assert load_errors(tmp_path) == dict.fromkeys(NEW_AND_SLOW)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "missing_keys: ['model.norm.weight']"),
        ("unexpected", "unexpected_keys: ['model.norm.bias']"),
        ("mismatched", "mismatched_sizes"),
        ("other-weights", "logits differ by "),
        ("other-class", "unexpected_keys: "),
        ("no-weights", "OSError"),
        ("warns", "it warns: "),
    ],
)
def test_a_stranger_sees_what_is_wrong(how: str, words: str, found: dict[str, str | None]) -> None:
    assert words in str(found[how])


def test_a_stranger_imports_nothing_of_ours() -> None:
    lines = Path(stranger.__file__).read_text().splitlines()
    imported = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", "json", "logging", "os", "sys", "warnings", "pathlib", "typing"} | {
        "torch",
        "safetensors",
        "transformers",
    }


class TestWhatIsRefused:
    """One thing at a time goes wrong, and is named."""

    def reason(self) -> str | None:
        return reload_error(verified("llama-tied-biases").model, verified("llama-tied-biases").small)

    def test_a_wrong_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reload, "parameter_polynomial", lambda _: Polynomial.constant(1234))
        assert str(self.reason()).startswith("1,234 parameters are counted where there are ")

    def test_a_count_by_the_map(self) -> None:
        small = verified("llama-tied-biases").small
        made = random_student(verified("llama-tied-biases").model, small, 0)
        assert made is not None
        assert count_error(made[0], small, made[1]) is None
        assert count_error(made[0], small, small.teacher) is not None

    @pytest.mark.parametrize("first", [1, 2])
    def test_other_text_with_a_cache(self, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first model is the teacher's copy, the second the student."""
        texts = iter([[[0]]] * (2 * first - 1) + [[[1]]])
        monkeypatch.setattr(reload, "generate_tokens", lambda *_, **__: next(texts))
        what = "it generates other tokens with a KV cache than without"
        assert self.reason() == (f"{what}, even uncut" if first == 1 else what)

    def test_other_logits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reload, "distance", lambda *_: 2e-5)
        assert self.reason() == "it computes other logits, even uncut"
        monkeypatch.setattr(reload, "distance", lambda *_: float("nan"))
        assert self.reason() == "it computes other logits, even uncut"

    def test_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Loader:
            @staticmethod
            def from_pretrained(folder: str, output_loading_info: bool) -> Any:
                return None, {"missing_keys": set(), "unexpected_keys": {"b", "a"}}

        monkeypatch.setattr(reload, "AutoModelForCausalLM", Loader)
        assert self.reason() == "unexpected keys: a, even uncut"

    def test_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the teacher is warned of too does not count, nor does what will change in libraries."""
        calls = iter(range(4))

        def generated(*_: Any, **__: Any) -> list[list[int]]:
            warnings.warn("of the class", UserWarning, stacklevel=1)
            if next(calls) > 1:
                warnings.warn("this will go", FutureWarning, stacklevel=1)
                warnings.warn("this is slow", UserWarning, stacklevel=1)
            return [[0]]

        monkeypatch.setattr(reload, "generate_tokens", generated)
        assert self.reason() == "it warns: this is slow"

    def test_what_a_machine_lacks_is_no_fault_of_the_student(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = iter(range(4))

        def generated(*_: Any, **__: Any) -> list[list[int]]:
            if next(calls) > 1:
                logging.getLogger("transformers.models").warning("a faster kernel is not installed")
            return [[0]]

        monkeypatch.setattr(reload, "generate_tokens", generated)
        assert self.reason() is None

    def test_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def generated(*_: Any, **__: Any) -> list[list[int]]:
            raise IndexError("out of\nrange")

        monkeypatch.setattr(reload, "generate_tokens", generated)
        assert self.reason() == "it stops with IndexError: range"

    def test_a_teacher_is_refused_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reload, "distance", lambda *_: 1.0)
        with pytest.raises(InputError) as refusal:
            verify_anew(TINY["llama"]["plain"])
        why = "none of its students can be saved and read back: it computes other logits, even uncut"
        assert refusal.value.values == f"'llama' is not: {why}"


class TestNothingIsLeftBehind:
    def test_random_numbers_loggers_and_bars(self, capfd: pytest.CaptureFixture[str]) -> None:
        torch.manual_seed(5)
        library = logging.getLogger("transformers")

        def state() -> tuple[object, ...]:
            bars = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
            return torch.get_rng_state().tolist(), library.level, library.handlers[:], library.propagate, bars

        before, filters = state(), warnings.filters[:]
        capfd.readouterr()
        assert reload_error(verified("gpt2").model, verified("gpt2").small) is None
        assert state() == before
        assert warnings.filters[:] == filters
        assert capfd.readouterr() == ("", "")

    def test_after_an_error_too(self) -> None:
        library = logging.getLogger("transformers")
        handlers, level = library.handlers[:], library.level
        with pytest.raises(KeyError), captured_warnings():
            raise KeyError
        assert (library.handlers, library.level) == (handlers, level)

    def test_what_is_said_within_is_heard_and_not_shown(self, capfd: pytest.CaptureFixture[str]) -> None:
        with captured_warnings() as heard:
            logging.getLogger("transformers.modeling_utils").warning("one")
            logging.getLogger("transformers").info("not this")
            warnings.warn("two", UserWarning, stacklevel=1)
            warnings.warn("nor this", DeprecationWarning, stacklevel=1)
        assert heard == ["one", "two"]
        assert capfd.readouterr() == ("", "")
