from __future__ import annotations

import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, Coupling, TensorRoles
from space.discovery.sizing import HiddenTie
from space.families import support
from space.families import support as command
from space.families.support import TYPES, SupportRow, markdown, summary, support_rows, try_type
from space.input_error import InputError

ROWS = [
    SupportRow("llama", ("hidden", "mlp")),
    SupportRow("falcon", ("hidden (with heads)",), tied={"kv_heads": "all heads share one"}),
    SupportRow("odd", ("mlp",), refused={"hidden": "it moves a|b", "heads": "no"}),
    SupportRow("bart", reason="it is an encoder-decoder, and its decoder reads an encoder's states"),
    SupportRow("mvp", reason="it is an encoder-decoder, and its decoder reads an encoder's states"),
    SupportRow("reformer", reason="it sorts tokens"),
]


def test_the_types_are_all_that_transformers_lists() -> None:
    assert set(TYPES) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert list(TYPES) == sorted(TYPES)


class TestPrinted:
    def test_a_table_in_markdown(self) -> None:
        assert markdown(ROWS[:4]) == (
            "| Type | Cut along | Not cut, and why |\n"
            "| --- | --- | --- |\n"
            "| `llama` | hidden, mlp | – |\n"
            "| `falcon` | hidden (with heads) | kv_heads: all heads share one |\n"
            "| `odd` | mlp | hidden: it moves a\\|b; heads: no |\n"
            "| `bart` | – | it is an encoder-decoder, and its decoder reads an encoder's states |\n"
        )

    def test_what_passes_and_why_the_rest_does_not(self) -> None:
        """An axis without a size of its own to choose is none that a type lacks."""
        assert [row.verdict for row in ROWS] == ["all", "all", "some", "none", "none", "none"]
        assert summary(ROWS) == (
            "6 types: 2 pass for every axis that they have, 1 for some, 3 are refused: "
            "2 because it is an encoder-decoder, 1 for reasons of its own."
        )

    def test_nothing_refused(self) -> None:
        assert (
            summary(ROWS[:1]) == "1 types: 1 pass for every axis that they have, 0 for some, 0 are refused."
        )


def found(refused: dict[Axis, str], tie: HiddenTie | None, kv_heads: int = 2) -> Any:
    """What vouching may have found, as far as a row is made of it."""
    small = AxisMap(
        config=None,  # type: ignore[arg-type]
        fields={},
        teacher=Architecture(12, 8, 4, kv_heads, 2, head_dim=3),
        head_dim=3,
        tensors=(),
        stacks=(),
        kinds=(0, 0),
        roles=TensorRoles("", "", None),
        couplings=(
            Coupling(Axis.HEAD_DIM, Axis.HIDDEN, Fraction(1, 4)),
            Coupling(Axis.MLP, Axis.HEAD_DIM, Fraction(2)),
        ),
        refused=refused,
    )
    return SimpleNamespace(small=small, tie=tie)


class TestARow:
    def test_axes_are_named_with_those_that_move_along(self) -> None:
        small = found({Axis.KV_HEADS: "no"}, None).small
        assert support._with_followers(small)(Axis.HIDDEN) == "hidden (with head_dim, mlp)"
        assert support._with_followers(small)(Axis.LAYERS) == "layers"

    def test_with_a_refused_axis_go_those_that_move_along(self) -> None:
        refused, tied = support._refusals(found({Axis.HIDDEN: "it\nis  wrong"}, None))
        assert (refused, tied) == ({"hidden and head_dim": "it is wrong"}, {})

    def test_heads_whose_size_moves_are_no_failure(self) -> None:
        refused, tied = support._refusals(found({Axis.HEADS: "instead"}, HiddenTie.HEAD_DIM))
        assert (refused, tied) == ({}, {"heads": "instead"})
        refused, tied = support._refusals(found({Axis.HEADS: "no", Axis.HIDDEN: "no"}, HiddenTie.HEAD_DIM))
        assert refused.keys() == {"heads", "hidden and head_dim"}

    def test_one_key_for_all_heads_is_no_failure(self) -> None:
        assert support._refusals(found({Axis.KV_HEADS: "shared"}, None, kv_heads=1))[0] == {}
        assert support._refusals(found({Axis.KV_HEADS: "wrong"}, None))[0] == {"kv_heads": "wrong"}


class TestEachForItself:
    """Whatever a type does, it ends as a row."""

    def test_a_refusal_for_users(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuses(_: object) -> None:
            raise InputError("Rule", "'llama' is not: it is\n odd", "Remedy")

        monkeypatch.setattr(support, "verify", refuses)
        assert try_type("llama") == SupportRow("llama", reason="it is odd")

    def test_any_exception(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_: object) -> None:
            raise ValueError("first\nlast line")

        monkeypatch.setattr(support, "verify", fails)
        assert try_type("llama") == SupportRow(
            "llama", reason="its class does not run at a tiny size (last line)", late=True
        )

    def test_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "verify", lambda _: time.sleep(20))
        monkeypatch.setattr(support, "_SECONDS", 1)
        before = signal.getsignal(signal.SIGALRM)
        assert try_type("llama") == SupportRow(
            "llama", reason="its trial takes more than 1 seconds", late=True
        )
        assert signal.getsignal(signal.SIGALRM) == before

    def test_what_fails_at_more_draws_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def breach(_: object, __: object, axes: Any, seed: int) -> str | None:
            return "it is wrong" if list(axes) == [Axis.MLP] and seed == support.DRAWS - 1 else None

        monkeypatch.setattr(support, "contract_breach", breach)
        row = try_type("llama")
        assert row.late
        assert row.refused == {"mlp": "it is wrong"}
        assert row.cut == ("hidden", "heads", "kv_heads", "layers")

    def test_what_a_stranger_complains_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tried(_: object, folder: Path, *__: object) -> Any:
            (folder / "llama").mkdir()
            yield SupportRow("llama", ("hidden",))
            yield SupportRow("bert", reason="it is an encoder")

        monkeypatch.setattr(support, "_tried", tried)
        monkeypatch.setattr(support, "load_errors", lambda _: {"llama": "it warns: no"})
        table = support_rows(["bert", "llama"])
        assert [row.model_type for row in table] == ["bert", "llama"]
        assert table[1].reason == "none of its students can be read back by a new process: it warns: no"
        assert table[1].late


class TestTheCommand:
    @pytest.mark.slow
    def test_it_is_one(self) -> None:
        line = [sys.executable, "-m", "space.families", "bert"]
        root = Path(command.__file__).resolve().parents[3]
        done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (
            "| Type | Cut along | Not cut, and why |\n"
            "| --- | --- | --- |\n"
            "| `bert` | – | it is an encoder: its tokens attend both ways |\n"
            "\n"
            "1 types: 0 pass for every axis that they have, 0 for some, 1 are refused: "
            "1 for reasons of its own.\n"
        )
        assert done.stderr == "bert: it is an encoder: its tokens attend both ways\n"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [(["lama"], "no causal language model of type 'lama'"), (["llama", "--write"], "of all types")],
    )
    def test_what_it_does_not_know(
        self, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as end:
            command.main(arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err

    def test_it_writes_the_file_and_tells_of_late_failures(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        late = SupportRow("odd", reason="it ends", late=True)
        monkeypatch.setattr(command, "support_rows", lambda *_, **__: [*ROWS, late])
        monkeypatch.setattr(command, "TABLE", tmp_path / "SUPPORT.md")
        assert command.main(["--write"]) == 1
        written = (tmp_path / "SUPPORT.md").read_text()
        assert markdown([*ROWS, late]) in written
        assert "of transformers 5." in written
        assert "Not refused at run time in the same words: odd" in capsys.readouterr().err
        monkeypatch.setattr(command, "support_rows", lambda *_, **__: ROWS)
        assert command.main(["--write"]) == 0
