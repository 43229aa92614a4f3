"""What people type, and what they are told when it will not do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.settings.command_line import read_flags
from search.settings.flag_rules import parse_count
from search.settings.flags import Flags
from space.input_error import InputError
from tests.warm_python import warm_run

ROOT = Path(__file__).resolve().parents[3]


def refusal(arguments: list[str]) -> InputError:
    with pytest.raises(InputError) as caught:
        read_flags(arguments)
    return caught.value


def test_a_budget_is_enough() -> None:
    assert read_flags(["--budget", "1M"]) == Flags(budget="1M")


def test_short_flags() -> None:
    assert read_flags(["--budget", "1M", "-q"]).quiet
    assert read_flags(["--budget", "1M", "-v"]).verbose


EVERY_FLAG = [
    *("--budget", "60%", "--budget-of", "kv-cache", "--budget-dtype", "float16"),
    *("--keep", "heads", "kv_heads", "--sizes", "hidden=64..96", "mlp=3x,4x", "--multiples", "deploy"),
    *("--basis", "weighted"),
    *("--width-by", "taylor", "--aggregation", "var,l2", "--depth-by", "perplexity", "--rounds", "2"),
    *("--rounds-order", "depth-width", "--repair", "least-squares", "norm-scale"),
    *("--tolerance", "0.05", "--model", "m", "--revision", "r", "s", "--data", "d.txt"),
    *("--correct-teacher", "2M", "--loss", "reverse-kl", "--temperature", "2", "--states", "late"),
    *(
        "embedding",
        "--targets",
        "live",
        "--schedule",
        "wsd",
        "--rate",
        "3e-4",
        "--benchmarks",
        "quiz",
        "own.yaml",
    ),
    *("--task-samples", "250"),
    *("--trials", "9", "--rung-tokens", "64k", "256k", "--retrain-tokens", "1.5M", "--promote", "3"),
    *(
        "--objectives",
        "loss",
        "--sampler",
        "gp",
        "--search",
        "rungs",
        "--storage",
        "s.journal",
        "--study-name",
        "n",
    ),
    *(
        "--max",
        "latency=20ms",
        "memory=8GB",
        "--min",
        "quiz=0.5",
        "--try",
        "hidden=3072,mlp=9216",
        "layers=28",
    ),
    *("--seed", "5", "--device", "cpu", "--dtype", "float32", "--optimizer", "adamw-8bit"),
    *("--out", "o", "--retrain-baselines", "False", "--keep-towers"),
    *("--trust-remote-code", "--plan", "--verbose"),
]


def test_every_flag_is_read() -> None:
    flags = read_flags(EVERY_FLAG)
    assert flags == Flags(
        budget="60%",
        budget_of="kv-cache",
        budget_dtype="float16",
        keep=("heads", "kv_heads"),
        sizes=("hidden=64..96", "mlp=3x,4x"),
        multiples="deploy",
        basis="weighted",
        width_by="taylor",
        aggregation="var,l2",
        depth_by="perplexity",
        rounds=2,
        rounds_order="depth-width",
        repair=("least-squares", "norm-scale"),
        tolerance=0.05,
        model=("m",),
        revision=("r", "s"),
        correct_teacher="2M",
        loss="reverse-kl",
        temperature=2.0,
        states=("late", "embedding"),
        targets="live",
        schedule="wsd",
        rate="3e-4",
        optimizer="adamw-8bit",
        benchmarks=("quiz", "own.yaml"),
        task_samples=250,
        data=("d.txt",),
        trials=9,
        rung_tokens=("64k", "256k"),
        retrain_tokens="1.5M",
        promote=3,
        objectives="loss",
        max=("latency=20ms", "memory=8GB"),
        min=("quiz=0.5",),
        try_=("hidden=3072,mlp=9216", "layers=28"),
        sampler="gp",
        search="rungs",
        storage="s.journal",
        study_name="n",
        out=Path("o"),
        seed=5,
        device="cpu",
        dtype="float32",
        retrain_baselines=False,
        keep_towers=True,
        trust_remote_code=True,
        plan=True,
        verbose=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "A run needs a budget; --budget was not given. Add for example --budget 1M or --budget 60%."),
        (
            ["--budget", "1X"],
            "A budget is a positive number of parameters (units k, M, B, T) or a percentage; "
            "'1X' has the unknown unit 'X'. Write it like 4B, 350M, 800k, 1200000 or 60%.",
        ),
        (
            ["--budget", "1M", "--tolerance", "0.5"],
            "The tolerance has to lie between 0 and 0.5; 0.5 was given. Try --tolerance 0.02.",
        ),
        (
            ["--budget", "1M", "--tolerance", "nan"],
            "The tolerance has to lie between 0 and 0.5; nan was given. Try --tolerance 0.02.",
        ),
        (
            ["--budget", "1M", "--trials", "0"],
            "--trials has to be at least 1; 0 was given. Leave --trials out.",
        ),
        (
            ["--budget", "1M", "--promote", "-1"],
            "--promote has to be at least 1; -1 was given. Leave --promote out.",
        ),
        (
            ["--budget", "1M", "--seed", "-1"],
            "--seed has to be a whole number from 0 to 4294967295; -1 was given. Try --seed 0.",
        ),
        (
            ["--budget", "1M", "--seed", str(2**32)],
            "--seed has to be a whole number from 0 to 4294967295; 4294967296 was given. Try --seed 0.",
        ),
        (
            ["--budget", "1M", "--rung-tokens", "64k", "64000"],
            "Each rung has to have more tokens than the one before; 64k 64000 was given. "
            "Put --rung-tokens in ascending order.",
        ),
        (
            ["--budget", "1M", "--rung-tokens", "2k", "1k"],
            "Each rung has to have more tokens than the one before; 2k 1k was given. "
            "Put --rung-tokens in ascending order.",
        ),
        (
            ["--budget", "1M", "--rung-tokens", "50%"],
            "--rung-tokens takes numbers of tokens; '50%' is none. Write 64k, 1.5M or 2B.",
        ),
        (
            ["--budget", "1M", "--retrain-tokens", "many"],
            "--retrain-tokens takes numbers of tokens; 'many' is none. Write 64k, 1.5M or 2B.",
        ),
        (
            ["--budget", "1M", "--correct-teacher", "10%"],
            "--correct-teacher takes numbers of tokens; '10%' is none. Write 64k, 1.5M or 2B.",
        ),
        (
            ["--budget", "1M", "--loss", "mse", "--targets", "sampled"],
            "A loss that compares all logits needs targets that hold them; --loss mse was given with "
            "--targets sampled. Leave --targets out, or take --loss forward-kl.",
        ),
        (
            ["--budget", "1M", "--states", "late", "none"],
            "--states takes auto, none, or names of states; late none was given. Leave auto and none out.",
        ),
        (
            ["--budget", "1M", "--states", "late", "--targets", "top-k"],
            "Intermediate states are compared with targets that hold the teacher's; --states late was given "
            "with --targets top-k. Leave --targets out, or leave --states out.",
        ),
        (
            ["--budget", "1M", "--temperature", "0"],
            "The temperature has to be above 0; 0.0 was given. Leave it out: it is 1 then.",
        ),
        (
            ["--budget", "2M,1M", "--try", "layers=4"],
            "An architecture by hand belongs to one budget; --try layers=4 was given with --budget 2M,1M. "
            "Add --try to the command of one budget.",
        ),
        (["--budget", "1M", "-v", "-q"], "-v and -q exclude each other; both were given. Leave one out."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_will_not_do_is_said_in_one_sentence(arguments: list[str], message: str) -> None:
    assert str(refusal(arguments)) == message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--budget", "1M", "--budget-of", "weights"],
            "'1M' is in parameters. Write it like 8GB, 500MB, 16GiB, 64kB or 60%, or say with --budget-of",
        ),
        (
            ["--budget", "8GB"],
            "'8GB' is in bytes. Write it like 4B, 350M, 800k, 1200000 or 60%, or say with --budget-of",
        ),
        (["--budget", "1M", "--keep", "hidden", "head"], "'head' is none of them. Did you mean 'heads'."),
        (
            ["--budget", "1M", "--loss", "kl"],
            "A loss is a sum of terms out of forward-kl, reverse-kl, jensen-shannon, mse, cosine",
        ),
        (["--budget", "1M", "--sizes", "mlp=a"], "--sizes mlp=a is neither. Write --sizes hidden=2048..3584"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_budgets_and_limits_are_read_before_anything_else(arguments: list[str], part: str) -> None:
    assert part in str(refusal(arguments))


@pytest.mark.parametrize(
    ("text", "tokens"), [("64k", 64_000), ("1.5M", 1_500_000), ("2B", 2 * 10**9), ("7", 7), (" 8k ", 8000)]
)
def test_tokens_are_counted(text: str, tokens: int) -> None:
    assert parse_count(text, "--retrain-tokens") == tokens


@pytest.mark.parametrize("text", ["", "0", "0.4", "-3", "1e5", "64 kilo", "10%", "k"])
def test_no_number_of_tokens(text: str) -> None:
    with pytest.raises(InputError, match=r"^--flag takes numbers of tokens; .* is none\. Write 64k"):
        parse_count(text, "--flag")


@given(st.integers(1, 10**15))
def test_plain_numbers_are_themselves(tokens: int) -> None:
    assert parse_count(str(tokens), "--flag") == tokens


@pytest.mark.parametrize(
    "arguments",
    [["--buget", "1M"], ["--budget"], ["--trials", "many"], ["--sampler", "best"], ["--preset"], ["1M"]],
    ids=" ".join,
)
def test_a_mistake_in_the_flags_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_flags(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "python -m search.run" in err


def cold_run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """``warm_run`` in a process that has to import everything, and might warn while it does."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("run", [warm_run, pytest.param(cold_run, marks=pytest.mark.slow)])
def test_help_shows_the_examples_and_every_flag(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    command = [sys.executable, "-m", "search.run", "--help"]
    done = run(command, cwd=ROOT, env={"COLUMNS": "120", "PATH": ""}, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Find the best smaller model inside a big one." in done.stdout
    for example in (
        "python -m search.run --budget 1M",
        "python -m search.run --budget 60% --model path/to/model --data text.txt",
        "python -m search.run --budget 4B --plan",
    ):
        assert re.search(rf"^│? *{re.escape(example)} *│?$", done.stdout, re.MULTILINE), example
    for field in fields(Flags):
        assert f"--{field.name.rstrip('_').replace('_', '-')}" in done.stdout
    assert {"-v", "-q", "-h"} <= set(re.findall(r"-\w\b", done.stdout))
