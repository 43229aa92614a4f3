"""The schema takes what a run writes and names what is wrong with anything else."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from search.runs.summary import check, load_schema, read, write
from space.input_error import InputError
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS, Summary

Path_ = tuple[str | int, ...]
SCHEMA = load_schema()


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its reference to a definition looked up."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return {**SCHEMA["$defs"][name], **schema} if name else schema


def required_places(value: Any, schema: dict[str, Any], place: Path_ = ()) -> Iterator[Path_]:
    """The place of every required key that ``value`` holds."""
    schema = resolved(schema)
    for variant in schema.get("oneOf", []):
        yield from required_places(value, variant, place)
    if isinstance(value, dict):
        yield from ((*place, key) for key in schema.get("required", []))
        for key, part in schema.get("properties", {}).items():
            if key in value:
                yield from required_places(value[key], part, (*place, key))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from required_places(item, schema["items"], (*place, index))


def objects_in(value: Any, place: Path_ = ()) -> Iterator[Path_]:
    """The place of every object within ``value``, itself included."""
    if isinstance(value, dict):
        yield place
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            yield from objects_in(item, (*place, key))


def at(summary: Summary, place: Path_) -> Any:
    """The value at a place."""
    value: Any = summary
    for step in place:
        value = value[step]
    return value


def subschemas(schema: dict[str, Any], place: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every named part of the schema."""
    for group in ("properties", "$defs"):
        for key, part in schema.get(group, {}).items():
            yield f"{place}/{group}/{key}", part
            yield from subschemas(part, f"{place}/{group}/{key}")
    for part in [schema.get("items"), *schema.get("oneOf", [])]:
        if isinstance(part, dict):
            yield from subschemas(part, place)


def small_sample() -> Summary:
    """The sample with one of each kind: complete and failed trials, a promoted model, a baseline."""
    summary = sample_summary()
    trials = summary["trials"]
    kept = [trials[0], trials[23], trials[-1]]
    return summary | {
        "trials": kept,
        "promoted": summary["promoted"][:1],
        "baselines": summary["baselines"][-1:],
        "pareto": summary["pareto"][:1],
    }


SAMPLE = small_sample()
REQUIRED = list(required_places(SAMPLE, SCHEMA))
#: Objects whose keys are free: named objectives, stages, packages and devices.
FREE = {"objectives", "seconds", "versions", "benchmarks", "counters"}
CLOSED = [place for place in objects_in(SAMPLE) if not FREE.intersection(map(str, place[-1:]))]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_run_writes_is_accepted(name: str) -> None:
    check(VARIANTS[name]())


def test_every_key_is_described() -> None:
    parts = [(place, resolved(part)) for place, part in subschemas(SCHEMA) if "/$defs/" not in place[-30:]]
    packages = ("slimsearch", "python", "torch", "transformers", "optuna")
    silent = [place for place, part in parts if "description" not in part and not place.endswith(packages)]
    assert silent == []


def test_the_sample_reaches_every_required_key() -> None:
    assert {place[0] for place in REQUIRED} == set(SCHEMA["required"]) == set(SCHEMA["properties"])
    assert {trial["state"] for trial in SAMPLE["trials"]} == {"complete", "failed"}


@given(st.sampled_from(REQUIRED))
def test_a_missing_key_is_named(place: Path_) -> None:
    summary = copy.deepcopy(SAMPLE)
    del at(summary, place[:-1])[place[-1]]
    with pytest.raises(InputError, match=f"'{place[-1]}' is a required property"):
        check(summary)


@given(st.sampled_from(CLOSED), st.text(min_size=1))
def test_an_unknown_key_is_named(place: Path_, key: str) -> None:
    summary = copy.deepcopy(SAMPLE)
    if key in resolved_keys(place):
        return
    at(summary, place)[key] = 1
    with pytest.raises(InputError) as caught:
        check(summary)
    assert repr(key) in str(caught.value)


def resolved_keys(place: Path_) -> set[str]:
    """Keys the schema knows for the object at a place of the sample."""
    schema: dict[str, Any] = SCHEMA
    for step in place:
        schema = resolved(schema)
        schema = next((one for one in schema.get("oneOf", []) if "properties" in one), schema)
        schema = schema["items"] if isinstance(step, int) else schema["properties"][step]
    schema = resolved(schema)
    schema = next((one for one in schema.get("oneOf", []) if "properties" in one), schema)
    return set(schema["properties"])


@given(st.sampled_from([place for place in REQUIRED if isinstance(at(SAMPLE, place), float)]))
def test_a_number_that_json_cannot_hold_is_named(place: Path_) -> None:
    summary = copy.deepcopy(SAMPLE)
    at(summary, place[:-1])[place[-1]] = math.nan
    with pytest.raises(InputError, match="is not a finite number") as caught:
        check(summary)
    assert f".{place[-1]} " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["trials"][0].update(state="failed", loss=None), "summary.trials[0].failure"),
        (lambda s: s["trials"][0].update(loss=None), "summary.trials[0].loss: None is not of type 'number'"),
        (lambda s: s["trials"][0].update(state="running"), "'running' is not one of ['complete', 'over', "),
        (lambda s: s["trials"][0].update(failure="late"), "summary.trials[0].failure: 'late' is not of"),
        (lambda s: s["trials"][0].update(parameters=1.5), "1.5 is not of type 'integer'"),
        (lambda s: s["trials"][0].update(label="../../etc"), "summary.trials[0].label"),
        (lambda s: s["baselines"][0].update(loss=None), "summary.baselines[0].failure"),
        (lambda s: s["promoted"][0].update(loss=None), "'failure' is a required property"),
        (lambda s: s["promoted"][0].update(origin="random-weights"), "'random-weights' is not one of"),
        (lambda s: s["promoted"][0]["curve"].append([1]), "summary.promoted[0].curve[13]"),
        (lambda s: s["rank_correlation"][0].update(kendall_tau=1.2), "1.2 is greater than the maximum of 1"),
        (lambda s: s.update(objectives=[]), "summary.objectives"),
    ],
)
def test_what_contradicts_itself_is_refused(change: Any, message: str) -> None:
    summary = sample_summary()
    if summary["promoted"][0].get("failure") is None:
        summary["promoted"][0].pop("failure")
    change(summary)
    with pytest.raises(InputError) as caught:
        check(summary)
    assert message in str(caught.value)
    assert "Write it with the same version" in caught.value.remedy


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write(path, SAMPLE)
    assert read(path) == SAMPLE
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_wrong_summary_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write(path, SAMPLE)
    with pytest.raises(InputError, match="'name' is a required property"):
        write(path, {key: value for key, value in SAMPLE.items() if key != "name"})
    assert read(path) == SAMPLE


def test_a_folder_that_is_absent_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "summary.json", SAMPLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", "holds a list"), (None, "cannot be read")]
)
def test_a_file_that_is_no_summary_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(path)
