"""What the studies share: where results are kept, and which text a seed stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluators.distillation.targets.live import TextTargets
from space.axes.architecture import Axis
from studies.bench.bench import Shuffled
from studies.bench.results import Results, effect, markdown, spread
from studies.bench.setting import SETTINGS
from studies.importance import __main__ as importance
from studies.importance import work as importance_work
from studies.importance.variants import REFERENCES, VARIANTS


def test_only_what_has_no_result_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl", ("variant", "seed"))
    runs = [{"variant": name, "seed": seed} for name in "ab" for seed in (0, 1)]
    assert results.rows() == []
    assert results.missing(runs) == runs
    results.add({**runs[2], "after": 3.5})
    assert results.missing(runs) == [*runs[:2], runs[3]]
    assert results.rows() == [{"variant": "b", "seed": 0, "after": 3.5}]


def test_effects_are_taken_seed_by_seed() -> None:
    assert spread([3.0, 3.2, 3.4]) == "3.200 ± 0.200"
    assert spread([3.0]) == "3.000"
    assert effect({0: 3.0, 1: 3.5, 2: 9.0}, {1: 4.0, 0: 3.5}) == "-0.500 ± 0.000"
    assert effect({0: 3.0}, {1: 4.0}) == ""
    assert markdown(["", "loss"], [["a", "1"]]) == "|  | loss |\n|---|--:|\n| a | 1 |"


def test_a_seed_is_an_order_of_the_same_blocks() -> None:
    blocks = torch.arange(7)[:, None]
    targets = TextTargets(blocks, torch.device("cpu"))
    orders = [Shuffled(targets, seed).batch(torch.arange(7)).tokens.flatten().tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_students_of_a_study_differ_in_one_thing() -> None:
    assert {variant.study for variant in VARIANTS} == REFERENCES.keys()
    for study, reference in REFERENCES.items():
        mine = [variant for variant in VARIANTS if variant.study == study]
        assert reference in [variant.name for variant in mine]
        assert len({variant.name for variant in mine}) == len(mine)
        assert len({variant.sizes for variant in mine}) == 1
    assert {Axis.HIDDEN, Axis.MLP} <= SETTINGS["embedded"].widths.keys()


def test_the_tables_compare_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.jsonl", importance_work.RESULTS.key)
    monkeypatch.setattr(importance, "RESULTS", results)
    variants = {variant.name: variant for variant in VARIANTS if variant.study == "residual"}
    for seed in (0, 1):
        for name, after in (("on", 2.75), ("off", 2.5)):
            about = importance_work.described("embedded", variants[name], seed)
            results.add({**about, "before": 4.0, "after": after + seed})
    lines = importance.tables().splitlines()
    assert "## residual, embedded" in lines
    assert "| off | 4.000 | 3.000 ± 0.707 |  |" in lines
    assert "| on | 4.000 | 3.250 ± 0.707 | 0.250 ± 0.000 |" in lines
