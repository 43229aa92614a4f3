"""Flags from a file: what it may hold, and what it is told when it will not do."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from search.settings.command_line import load_preset, read_flags
from search.settings.flag_rules import check_flags
from search.settings.flags import Flags
from space.input_error import InputError

EVERY_FLAG = """
budget = 1000000
tolerance = 0.05
budget-of = "active"
budget-dtype = "float16"
keep = ["heads"]
sizes = ["layers=4,5"]
multiples = "fine"
keep-towers = true
basis = "principal"
width-by = "magnitude"
aggregation = "l2,var"
depth-by = "block-influence"
rounds = 2
rounds-order = "width-depth"
repair = ["head-residual"]
model = "m"
revision = ["r", "s"]
correct-teacher = "2M"
loss = "0.5*forward-kl+0.5*cross-entropy"
temperature = 2
states = ["late"]
targets = "hidden"
schedule = "wsd"
rate = 3e-4
optimizer = "adamw-8bit"
benchmarks = "quiz"
task-samples = 250
min = "quiz=0.5"
data = "d"
search-tokens = 100000
trials = 9
rung-tokens = [1000, "2k"]
retrain-tokens = 4000
promote = 3
objectives = "loss"
max = ["memory=8GB", "latency=20ms"]
try = "hidden=3072"
sampler = "gp"
search = "rungs"
storage = "s"
taught-by = "previous"
teacher-tokens = "15T"
study-name = "n"
out = "o"
seed = 5
device = "cpu"
dtype = "bfloat16"
retrain-baselines = true
hours = 2
learn = "answers"
block = "1k"
long-context = "2k=5%"
batch-tokens = 8192
calibration-samples = 64
device-memory = "80GB"
trust-remote-code = true
plan = true
json = true
verbose = true
quiet = false
"""


def preset(text: str, folder: Path) -> Path:
    path = folder / "preset.toml"
    path.write_text(text)
    return path


def refusal(arguments: list[str]) -> InputError:
    with pytest.raises(InputError) as caught:
        read_flags(arguments)
    return caught.value


@pytest.mark.parametrize("named", [["--preset", "{}"], ["--preset={}"]])
@pytest.mark.parametrize("first", [True, False])
def test_a_preset_is_read_and_the_command_line_wins(named: list[str], first: bool, tmp_path: Path) -> None:
    path = preset('budget = "1M"\ntrials = 8\nrung-tokens = [8000, "16k"]\npromote = 1\n', tmp_path)
    flags, others = [part.format(path) for part in named], ["--trials", "9"]
    read = read_flags(flags + others if first else others + flags)
    expected = Flags(budget="1M", trials=9, rung_tokens=("8000", "16k"), promote=1)
    assert replace(read, preset=None) == expected


def test_rungs_on_the_command_line_replace_those_of_the_preset(tmp_path: Path) -> None:
    path = preset('budget = "1M"\nrung_tokens = ["8k", "16k", "32k"]\n', tmp_path)
    assert read_flags(["--preset", str(path), "--rung-tokens", "4k"]).rung_tokens == ("4k",)


def test_a_preset_may_hold_every_flag_but_itself(tmp_path: Path) -> None:
    text = EVERY_FLAG
    flags = load_preset(preset(text, tmp_path))
    check_flags(flags)
    assert (flags.budget, flags.rung_tokens, flags.retrain_tokens) == ("1000000", ("1000", "2k"), "4000")
    assert (flags.model, flags.revision, flags.benchmarks) == (("m",), ("r", "s"), ("quiz",))
    assert (flags.out, flags.retrain_baselines, flags.dtype) == (Path("o"), True, "bfloat16")
    assert (flags.max, flags.try_) == (("memory=8GB", "latency=20ms"), ("hidden=3072",))
    named = {line.split(" = ")[0].replace("-", "_") for line in text.split("\n") if line}
    assert named == {field.name.rstrip("_") for field in fields(Flags)} - {"preset"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("buget = 3\ntrails = 2", "Every key of a preset has to be a flag; {} holds buget, trails"),
        ('preset = "other.toml"', "Every key of a preset has to be a flag; {} holds preset"),
        ("budget = ", "A preset has to be TOML; {}: Invalid value (at end of document)"),
        (
            "trials = 'many'",
            "Every value of a preset has to be one that its flag takes; {} holds trials = 'many'",
        ),
        ("trials = true", "flag takes; {} holds trials = True"),
        ("trials = 8.5", "flag takes; {} holds trials = 8.5"),
        ("sampler = 'best'", "flag takes; {} holds sampler = 'best'"),
        ("dtype = 'int8'", "flag takes; {} holds dtype = 'int8'"),
        ("rung_tokens = 8000", "flag takes; {} holds rung_tokens = 8000"),
        ("rung_tokens = [true]", "flag takes; {} holds rung_tokens = [True]"),
        ("tolerance = '2%'", "flag takes; {} holds tolerance = '2%'"),
        ("plan = 1", "flag takes; {} holds plan = 1"),
        ("out = 3", "flag takes; {} holds out = 3"),
        ("budget = [1]", "flag takes; {} holds budget = [1]"),
        ("model = {a = 1}", "flag takes; {} holds model = {{'a': 1}}"),
        ("[study]\ntrials = 3", "Every key of a preset has to be a flag; {} holds study"),
    ],
)
def test_a_preset_that_will_not_do_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = preset(text, tmp_path)
    error = refusal(["--budget", "1M", "--preset", str(path)])
    assert message.format(path) in str(error)
    assert str(error).endswith(("--help.", "under studies/."))


def test_a_preset_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    rule = "A preset has to be a readable file"
    assert str(refusal(["--preset", f"{tmp_path}/none.toml"])) == (
        f"{rule}; {tmp_path}/none.toml: No such file or directory. "
        "Name a TOML file such as those under studies/."
    )
    assert refusal([f"--preset={tmp_path}"]).rule == rule
    (tmp_path / "binary.toml").write_bytes(b"budget = '\xff'")
    assert refusal(["--preset", f"{tmp_path}/binary.toml"]).rule == "A preset has to be TOML"


def test_the_values_of_a_preset_are_checked_too(tmp_path: Path) -> None:
    assert refusal(["--preset", str(preset('budget = "1X"', tmp_path))]).values.startswith(
        "'1X' has the unknown"
    )
    assert refusal(["--preset", str(preset("trials = 3", tmp_path))]).rule == "A run needs a budget"
