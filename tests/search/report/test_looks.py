"""What stands side by side: the texts that models write, and their parts; and energy, where it is known."""

from __future__ import annotations

import pytest

from search.report.document import report_html
from search.report.inspection import breakdown_stacks, side_by_side
from tests.search.report.looks import PROMPTS, breakdown
from tests.search.report.sample import sample_summary
from tests.search.report.test_report import Page
from tests.search.report.variants import VARIANTS


def text_of(summary: dict[str, object]) -> str:
    return " ".join(Page(report_html(summary, None)).text.split())


def test_teacher_and_chosen_model_come_first() -> None:
    summary = sample_summary()
    summary["baselines"][2]["continuations"] = summary["teacher"]["continuations"]
    summary["chosen"]["label"] = summary["promoted"][1]["label"]
    found = side_by_side(summary)
    assert [prompt for prompt, _ in found] == PROMPTS
    for _, written in found:
        assert [(one.kind, one.name) for one in written] == [
            ("teacher", "teacher"),
            ("chosen", "chosen"),
            ("promoted", "promoted"),
            ("baseline", "depth only"),
        ]
    assert [one.ended for _, (teacher, *_) in found for one in [teacher]] == [False, True, False]
    assert [one.text for one in found[2][1][:2]] == [
        "top):\n\tpass  # teacher",
        f"top):\n\tpass  # {summary['chosen']['label']}",
    ]


def test_without_prompts_there_is_no_section() -> None:
    summary = sample_summary() | {"prompts": []}
    assert side_by_side(summary) == []
    assert "What they write" not in text_of(summary)
    assert "What they write" in text_of(sample_summary())


def test_text_that_turns_or_hides_others_is_shown_as_signs() -> None:
    summary = sample_summary()
    summary["teacher"]["continuations"][0]["text"] = "a\u202eb\x00c\x1b[31md\re\u2066f\x85g\u2028h\ti\nj"
    summary["teacher"]["id"] = "name\u202etxt"
    page = Page(report_html(summary, None)).text
    assert "a⟨U+202E⟩b␀c␛[31md␍e⟨U+2066⟩f⟨85⟩g⟨U+2028⟩h\ti\nj" in page
    assert "name⟨U+202E⟩txt" in page
    assert not any(sign in page for sign in "\u202e\u2066\x00\x1b\r\x85\u2028")


def test_bars_are_on_the_scale_of_the_longer_one() -> None:
    summary = sample_summary()
    parameters, prefill, decode = breakdown_stacks(summary)
    teacher, chosen = parameters.bars
    assert (teacher.model, chosen.model) == ("teacher", "chosen")
    assert sum(piece.share for piece in teacher.pieces) == pytest.approx(1)
    kept = summary["promoted"][0]["parameters"] / summary["teacher"]["parameters"]
    assert sum(piece.share for piece in chosen.pieces) == pytest.approx(kept)
    assert [piece.part for piece in teacher.pieces] == ["embeddings", "attention", "mlp", "rest"]
    assert [name for _, name, _ in prefill.rows] == [
        "embeddings",
        "attention",
        "MLP",
        "head",
        "norms and the rest",
    ]
    latency = summary["teacher"]["breakdown"]["latency"]
    assert decode.bars[0].total == f"{latency['decode_ms_per_token']:.3f}"
    assert decode.rows[2][2][1] == "40%"


def test_the_sample_adds_up() -> None:
    summary = sample_summary()
    for model in (summary["teacher"], *summary["promoted"]):
        assert sum(model["breakdown"]["parameters"].values()) == model["parameters"]
        latency = model["breakdown"]["latency"]
        whole = latency["prefill_ms"] + latency["answer"] * latency["decode_ms_per_token"]
        assert whole == pytest.approx(model["latency_ms"])


def test_a_chosen_model_that_was_not_kept_leaves_the_teacher_alone() -> None:
    stacks = breakdown_stacks(VARIANTS["baseline_wins"]())
    assert [[bar.model for bar in stack.bars] for stack in stacks] == [["teacher"]] * 3
    summary = sample_summary()
    for model in (summary["teacher"], *summary["promoted"]):
        model["breakdown"] = None
    assert breakdown_stacks(summary) == []
    assert "Where size and time lie" not in text_of(summary)


def test_a_mixture_has_its_experts_in_a_row_of_their_own() -> None:
    summary = sample_summary()
    found = breakdown(summary["teacher"]["architecture"], 100, 10, 5.0)
    found["parameters"] |= {"experts": 1_000_000, "head": 5000}
    summary["teacher"]["breakdown"] = found
    rows = {name: cells for _, name, cells in breakdown_stacks(summary)[0].rows}
    assert list(rows) == ["embeddings", "attention", "MLP", "experts", "head", "norms and the rest"]
    assert rows["experts"][0] == "1.00\u00a0M"
    assert rows["experts"][2:] == ["\u2013", ""], "the chosen model has none"


def test_energy_is_told_or_said_to_be_unknown() -> None:
    summary = sample_summary()
    assert "Energy processors of host41.3 kJ (11.5 Wh)" in text_of(summary)
    summary["energy"] = {"joules": 7.2e6, "counters": {"a GPU": 3.6e6, "processors": 3.6e6}}
    assert "a GPU3.60 MJ (1.00 kWh) processors3.60 MJ (1.00 kWh) total7.20 MJ (2.00 kWh)" in text_of(summary)
    assert "Energy not known on this machine" in text_of(summary | {"energy": None})
