"""A student on disk is a stock model: a process with torch and transformers alone reads and runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from space.architecture import Architecture
from space.extraction import extract, sort_by_importance
from space.families import FAMILIES
from tests.contracts.draws import axis_map_of, random_ranking
from tests.contracts.tiny import TINY, logits_of, random_teacher, tokens

CASES = [(family, name) for family in FAMILIES for name in TINY.get(family, {})]
STRANGER = """
import json, sys, warnings
sys.modules.update(dict.fromkeys(["space", "evaluators", "search", "studies"]))  # not to be imported
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

warnings.simplefilter("error")
logging.disable_progress_bar()
tokens, logits, seen = load_file("tokens")["tokens"], {}, {}
for case in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(case, output_loading_info=True)
    with torch.no_grad():
        logits[case] = model(input_ids=tokens, use_cache=False).logits
    rest = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 10, "do_sample": False}
    texts = [model.generate(tokens, use_cache=cached, **rest).tolist() for cached in (True, False)]
    seen[case] = {
        "class": type(model).__name__,
        "config": model.config.to_dict(),
        "loading": {kind: sorted(map(str, names)) for kind, names in info.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": texts,
    }
save_file(logits, "logits")
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each case the student as it was saved and what the stranger saw of it."""
    folder = tmp_path_factory.mktemp("students")
    save_file({"tokens": tokens()}, folder / "tokens")
    saved = {}
    for family, name in CASES:
        axis_map, teacher = axis_map_of(family, name), random_teacher(TINY[family][name])
        ranking = random_ranking(axis_map.teacher, 7)
        canonical = sort_by_importance(dict(teacher.named_parameters()), axis_map, ranking)
        student = extract(canonical, axis_map, ranking, Architecture(24, 20, 3, 3, 2))
        student.save_pretrained(folder / f"{family}-{name}")
        saved[f"{family}-{name}"] = student
    command = [sys.executable, "-I", "-c", STRANGER, *saved]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, logits = json.loads(done.stdout), load_file(folder / "logits")
    assert done.stderr == "", "a stranger is warned of nothing"
    return {case: (saved[case], seen[case], logits[case]) for case in saved}


@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_a_stranger_reads_and_runs_the_student(case: str, students: dict[str, Any]) -> None:
    student, seen, logits = students[case]
    assert seen["class"] == type(student).__name__
    assert not any(seen["loading"].values()), seen["loading"]
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= seen["loading"].keys()
    assert seen["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert (seen["config"]["num_hidden_layers"], seen["config"]["dtype"]) == (2, "float32")
    torch.testing.assert_close(logits, logits_of(student), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_a_cache_of_keys_and_values_changes_no_text(case: str, students: dict[str, Any]) -> None:
    cached, whole = students[case][1]["texts"]
    assert cached == whole
    assert all(len(text) == tokens().shape[1] + 10 for text in cached)
