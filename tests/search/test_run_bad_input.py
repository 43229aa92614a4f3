"""Bad input: one message that says rule, value and remedy; status 2; nothing half-written."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import BertConfig, GPT2Config, PretrainedConfig, T5Config

from search.run import main
from search.storage.run_directory import RunDirectory
from tests.search.answer import Answer, Run, answer_of
from tests.search.synthetic import run_config

#: A budget that the tiny teacher can be cut to.
TINY = ("--budget", "70%", "--tolerance", "0.1")
TEXT = "a line of text for the tiny teacher to read\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, quiet, with its runs below ``tmp_path/runs``."""
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))

    def answer(*arguments: str | Path, quiet: bool = True) -> Answer:
        default = ["--device", "cpu", "--out", str(tmp_path / "runs"), *(["-q"] if quiet else [])]
        return answer_of(main, capsys, *arguments, *default)

    return answer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Enough documents for the tiny teacher."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} {TEXT * 8}"}) + "\n" for i in range(200)))
    return path


def config_of(config: PretrainedConfig, folder: Path, **changes: Any) -> Path:
    """A directory with a config alone."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def check(answer: Answer, tmp_path: Path, *parts: str) -> None:
    """One message with all the parts in order, and nothing made."""
    assert answer.status == 2
    assert answer.out == ""
    message = re.fullmatch(r"slimsearch: ([^\n]+); ([^\n]+)\. ([^\n]+)\.\n", answer.err)
    assert message is not None, f"rule; value. remedy. on one line, not {answer.err!r}"
    place = 0
    for part in parts:
        assert part in answer.err[place:], f"{part!r} in {answer.err!r}"
        place = answer.err.index(part, place) + len(part)
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("*.new")) + list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["A run needs a budget", "--budget was not given", "--budget 1M"]),
        (["--budget", "4Q"], ["(units k, M, B, T)", "'4Q' has the unknown unit 'Q'", "Write it like 4B"]),
        (["--budget", "-4B"], ["A budget is a positive number", "'-4B' is neither", "Write it like 4B"]),
        (["--budget", "0"], ["A budget is a positive number", "'0' is not positive", "Write it like 4B"]),
        (["--budget", "40B"], ["at least 1.25 times", "40B was asked", "Name a larger teacher with --model"]),
        (
            ["--budget", "100%", "--model", "TINY"],
            ["has to lie below the teacher's size", "parameters", "Ask for less (up to "],
        ),
        (
            ["--budget", "4B", "--model", "TINY"],
            ["has to lie below the teacher's size", "4,000,000,000 parameters ±2% was asked", "--model"],
        ),
        (
            ["--budget", "100", "--model", "TINY"],
            ["At least one architecture", "none lies within 100 param", "the nearest are ", "--tolerance"],
        ),
        (
            ["--budget", "70%", "--model", "TINY", "--objectives", "loss,latancy"],
            ["Objectives are loss, latency", "'latancy' is none", "Did you mean 'latency'"],
        ),
        (
            ["--budget", "70%", "--model", "TINY", "--objectives", "latency"],
            ["Objectives have to name loss", "'latency' does not", "Try --objectives loss,latency"],
        ),
        (
            ["--budget", "1M", "--trials", "0"],
            ["--trials has to be at least 1", "0 was given", "Leave --trials out"],
        ),
        (
            ["--budget", "1M", "--rung-tokens", "none"],
            ["--rung-tokens takes numbers of tokens", "'none' is none", "Write 64k"],
        ),
        (
            ["--budget", "1M", "--preset", "absent.toml"],
            ["A preset has to be a readable file", "absent.toml: No such file", "Name a TOML file"],
        ),
        (
            [*TINY, "--model", "TINY", "--study-name", "a/b"],
            ["the name of one folder", "'a/b' is none", "Try --study-name first-try"],
        ),
        (
            [*TINY, "--model", "TINY", "--data", "absent.txt"],
            ["absent.txt", "does not exist"],
        ),
        (
            [*TINY, "--model", "TINY", "--storage", "redis://host"],
            ["The Optuna storage has to be reachable", "redis://host answered", "Check --storage"],
        ),
        (
            [*TINY, "--model", "TINY", "--storage", "absent/shared.journal"],
            ["The Optuna storage has to be reachable", "absent/shared.journal answered", "Check --storage"],
        ),
        (
            ["--budget", "1M", "--model", "absent/folder/x"],
            ["a teacher is a directory or a hub id", "absent/folder/x does not exist", "Check the path"],
        ),
        (
            ["--budget", "1M", "--model", "TINY", "--revision", "main"],
            ["a revision goes with a hub id", "the revision given is main", "Leave --revision out"],
        ),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) and value[0][:2] == "--" else "",
)
def test_it_is_refused(
    arguments: list[str],
    parts: list[str],
    run: Run,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run(*(str(tiny_teacher) if argument == "TINY" else argument for argument in arguments))
    check(answer, tmp_path, *parts)


@pytest.mark.parametrize(
    ("config", "changes", "parts"),
    [
        (BertConfig(), {"architectures": ["BertForMaskedLM"]}, ["causal language model", "is a BertFor"]),
        (T5Config(), {}, ["causal language model", "(t5) has an encoder and a decoder"]),
        (
            GPT2Config(),
            {"add_cross_attention": True},
            ["has to be a decoder", "'gpt2' is not", "its cross-attention reads", "--model"],
        ),
        (
            GPT2Config(),
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            ["stored in floating point", "is quantised (gptq)", "Name the model it was made from"],
        ),
        (
            GPT2Config(),
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
            [
                "runs only if you allow it",
                "of the type mine",
                "Read that code, then give --trust-remote-code",
            ],
        ),
    ],
    ids=["encoder", "encoder and decoder", "half of another", "quantised", "remote code"],
)
def test_a_model_that_can_be_no_teacher_is_refused(
    config: PretrainedConfig, changes: dict[str, Any], parts: list[str], run: Run, tmp_path: Path
) -> None:
    folder = config_of(config, tmp_path / "teacher", **changes)
    check(run("--budget", "1M", "--model", folder), tmp_path, *parts)
    check(run("--budget", "1M", "--model", folder, "--plan"), tmp_path, *parts)


def test_a_config_alone_is_enough_for_a_plan_and_for_nothing_else(
    run: Run, demo_config: Path, tmp_path: Path
) -> None:
    answer = run("--budget", "1M", "--model", demo_config)
    parts = ("weights lie beside its config", "config.json is enough for --plan alone", "save_pretrained")
    check(answer, tmp_path, *parts)
    answer = run("--budget", "1M", "--model", demo_config, "--plan")
    assert (answer.status, answer.err) == (0, "")
    assert "1,837,184 parameters" in answer.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--model", "--data"])
def test_a_hub_id_that_cannot_be_reached_is_refused_with_what_else_will_do(
    flag: str, run: Run, tiny_teacher: Path, tmp_path: Path
) -> None:
    model = ("--model", str(tiny_teacher)) if flag == "--data" else ()
    answer = run(*TINY, *model, flag, "nobody/nothing")
    parts = ("hub", "nobody/nothing does not exist", "HF_HUB_OFFLINE", "`hf download nobody/nothing ")
    check(
        answer, tmp_path, f"{flag} takes a path or the id of a", *parts, f"bring DIR here and give {flag} DIR"
    )


def test_too_few_tokens_are_refused_with_how_many_are_needed(
    run: Run, tiny_teacher: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text(TEXT)
    answer = run(*TINY, "--model", tiny_teacher, "--data", text)
    check(answer, tmp_path, "at least one block of 64 tokens each", "short.txt has ", "at least 2560 tokens")


def test_a_run_directory_of_another_configuration_stays_as_it_is(
    run: Run, tiny_teacher: Path, text: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "runs" / "mine")
    with directory.joined(run_config(name="mine")):
        pass
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    answer = run(*TINY, "--model", tiny_teacher, "--data", text, "--study-name", "mine")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.count("\n") == 1
    assert "slimsearch: A run directory keeps the configuration that it was begun with; in " in answer.err
    assert f"teacher is {str(tiny_teacher)!r}, was 'studies/demo/teacher'" in answer.err
    assert "Take another --study-name, repeat the flags of that run, or delete the directory." in answer.err
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_folder_of_runs_that_is_a_file_is_refused(
    run: Run, tiny_teacher: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("mine")
    answer = run(*TINY, "--model", tiny_teacher, "--data", text)
    assert answer.status == 2
    assert "The folder of the runs has to be writable" in answer.err
    assert "Name another with --out" in answer.err
    assert (tmp_path / "runs").read_text() == "mine"


def test_verbose_and_quiet_exclude_each_other(run: Run, tmp_path: Path) -> None:
    check(
        run("--budget", "1M", "-v"),
        tmp_path,
        "-v and -q exclude each other",
        "both were given",
        "Leave one out",
    )


def test_a_device_that_is_not_here_is_refused(
    tmp_path: Path, demo_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    status = main(["--budget", "1M", "--model", str(demo_config), "--device", "gpu", "--out", str(out)])
    check(
        Answer(status, *capsys.readouterr()),
        tmp_path,
        "The device has to be one",
        "'gpu' is not",
        "cpu, cuda",
    )


def test_without_quiet_the_message_is_the_last_line(run: Run, tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TEXT)
    answer = run(*TINY, "--model", tiny_teacher, "--data", tmp_path / "short.txt", quiet=False)
    *progress, last = answer.err.splitlines()
    assert progress, "what was done until then"
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in progress)
    assert last.startswith("slimsearch: calibration, distillation and validation need")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped. Run the same command again to go on where it stopped."),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "the disk is full. Make space and run the same command again to go on.",
        ),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            2,
            "the disk is full. Make space and run the same command again to go on.",
        ),
    ],
    ids=["stopped", "disk full", "disk full within safetensors"],
)
def test_what_stops_a_run_from_outside_says_how_to_go_on(
    error: BaseException,
    status: int,
    message: str,
    run: Run,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.setattr("search.stages.pipeline.run", stopped)
    answer = run(*TINY, "--model", tiny_teacher)
    assert answer == Answer(status, "", f"slimsearch: {message}\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "broken"), SafetensorError("torn"), RuntimeError("a defect")]
)
def test_a_defect_is_not_hidden(
    error: Exception, run: Run, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("search.stages.pipeline.run", broken)
    with pytest.raises(type(error)):
        run(*TINY, "--model", tiny_teacher)


def test_a_password_is_not_written_down(
    run: Run, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def stopped(resolved: object, directory: object, console: object, command: str) -> None:
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr("search.stages.pipeline.run", stopped)
    assert run(*TINY, "--model", tiny_teacher, "--storage", "postgresql://me:secret@host/name").status == 130
    [command] = commands
    assert "--storage 'postgresql://me:***@host/name'" in command
