"""The study on a real teacher: its variants, its tables, and every variant at a toy size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from studies.bench.cuts import even_at
from studies.bench.results import Results
from studies.bench.setting import EMBEDDED
from studies.demo.pairs import PAIRS
from studies.real import __main__ as study
from studies.real import work as runs
from studies.real.variants import PARTS, REFERENCE, every_variant
from studies.real.work import TEACHER, Amounts, runs_of, work
from tests.search.synthetic import demo_map

TOY = Amounts(step_tokens=256, steps=(2,), seeds=(0,), calibration_blocks=2, examples=8)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    found = Results(tmp_path / "results.jsonl", runs.RESULTS.key)
    monkeypatch.setattr(runs, "RESULTS", found)
    monkeypatch.setattr(study, "RESULTS", found)
    monkeypatch.setattr(study, "HERE", tmp_path)
    return found


@pytest.fixture
def accelerate_as_found() -> Iterator[None]:
    """The precision of Accelerate is one for each process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def test_variants_have_names_of_their_own_and_differ_from_the_first_in_one_thing() -> None:
    names = [variant.name for variant in every_variant()]
    assert len(names) == len(set(names))
    for part in PARTS.values():
        first, *others = part.variants
        assert others
        for other in others:
            same = replace(other, name=first.name)
            assert same != first, "it differs"
            if other.shape == first.shape:
                fields = [name for name in vars(first) if getattr(same, name) != getattr(first, name)]
                assert len(fields) == 1, (other.name, fields)


def test_short_runs_come_first_and_seeds_go_round() -> None:
    rows = runs_of("a", every_variant(), Amounts())
    assert [row["steps"] for row in rows] == sorted(row["steps"] for row in rows)
    assert rows[0]["variant"] == REFERENCE.name
    assert len(rows) == 2 * 2 * len(every_variant())


def test_widths_and_layers_are_both_cut() -> None:
    axis_map = demo_map()
    space = enumerate_space(axis_map, Budget(1_100_000, 0.02))
    found = even_at(space, axis_map.teacher)
    assert found.layers == 7, "of 8, nearest to 85%"
    assert found.hidden < axis_map.teacher.hidden or found.mlp < axis_map.teacher.mlp


def test_differences_are_taken_order_by_order(results: Results) -> None:
    plain = {"teacher": "a", "steps": 96, "before": 4.0, "parameters": 10, "accuracy_error": 0.01}
    results.add({**plain, "variant": TEACHER, "steps": 0, "seed": 0, "bits_per_byte": 1.0, "accuracy": 0.8})
    for seed in (0, 1):
        for name, better in ((REFERENCE.name, 0.0), ("random weights", 0.5)):
            bits, right = 1.5 + seed / 10 + better, 0.7 - seed / 100 - better / 10
            results.add({**plain, "variant": name, "seed": seed, "bits_per_byte": bits, "accuracy": right})
    lines = study.tables().splitlines()
    assert "The teacher: 1.000 bits per byte, accuracy 0.800 ± 0.010, 10 parameters." in lines
    assert f"## {PARTS['teaching'].question}" in lines
    assert "| reference | 4.000 | 1.550 ± 0.071 |  | 0.695 ± 0.007 |  |" in lines
    assert (
        "| random weights | 4.000 | 2.050 ± 0.071 | 0.500 ± 0.000 | 0.645 ± 0.007 | -0.050 ± 0.000 |" in lines
    )
    assert not any(line == f"## {PARTS['shapes'].question}" for line in lines), "one variant compares nothing"


@pytest.mark.slow
def test_the_reference_and_a_step_between_run(
    results: Results, accelerate_as_found: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(["reference", "over 80%"], results, monkeypatch)
    rows = {row["variant"]: row for row in results.rows()}
    assert set(rows) == {TEACHER, "reference", "over 80%"}
    assert rows["reference"]["parameters"] == pytest.approx(0.6 * rows[TEACHER]["parameters"], rel=0.02)
    assert rows["over 80%"]["parameters"] == pytest.approx(rows["reference"]["parameters"], rel=0.04)
    assert 0 <= rows["reference"]["accuracy"] <= 1
    json.dumps(list(rows.values()), allow_nan=False)


@pytest.mark.slow
def test_every_variant_runs_once(
    results: Results, accelerate_as_found: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [variant.name for variant in every_variant()]
    _run(names, results, monkeypatch)
    before = results.rows()
    assert {row["variant"] for row in before} == {TEACHER, *names}
    _run(names, results, monkeypatch)
    assert results.rows() == before, "what has a result is not run again"


def _run(names: list[str], results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_DEPTH_EXAMPLES", 8)
    variants = [variant for variant in every_variant() if variant.name in names]
    work(replace(EMBEDDED, precision="no"), PAIRS, variants, TOY, threads=1)
