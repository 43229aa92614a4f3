from __future__ import annotations

import random
from collections.abc import Callable, Collection

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, PretrainedConfig

from space.axes.architecture import Architecture, Axis
from space.input_error import InputError
from space.verification import verification as vouching
from space.verification.reload import captured_warnings
from space.verification.verification import verified_axis_map, verify
from tests.contracts.tiny import CASES, SAMPLE, each, verified
from tests.space.models import LLAMA_8B, SMALL
from tests.verified_once import verify_anew
from tests.versions import skip_phi3


def quietly(config: PretrainedConfig) -> vouching.Verified:
    with captured_warnings():
        return verify(config)


class TestTheMapOfATeacher:
    def test_of_a_plain_one(self) -> None:
        axis_map = verified_axis_map(LLAMA_8B)
        assert axis_map.teacher == Architecture(4096, 14336, 32, 8, 32)
        assert axis_map.free == (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS)

    def test_what_was_found_on_the_copy_holds_for_it(self) -> None:
        axis_map = verified_axis_map(GPT2Config())
        assert axis_map.teacher == Architecture(768, 3072, 12, 12, 12)
        assert axis_map.free == (Axis.HIDDEN, Axis.MLP, Axis.LAYERS)
        fused = next(t for t in axis_map.tensors if t.name.endswith("h.0.attn.c_attn.weight"))
        q = "kv_heads×heads×64"
        assert [str(d) for d in fused.dimensions] == ["hidden", f"({q} + {q} + {q})"]

    @pytest.mark.usefixtures("nothing_verified_before")
    def test_random_numbers_go_on_as_before(self) -> None:
        state, python = torch.get_rng_state(), random.getstate()
        verified_axis_map(SMALL)
        assert torch.equal(torch.get_rng_state(), state)
        assert random.getstate() == python

    @pytest.mark.usefixtures("nothing_verified_before")
    @pytest.mark.slow
    def test_the_same_each_time(self) -> None:
        one, other = verified_axis_map(SMALL), verified_axis_map(SMALL)
        assert (one.tensors, one.scales, one.refused) == (other.tensors, other.scales, other.refused)


class TestFused:
    @pytest.mark.parametrize(
        ("case", "name", "form"),
        [
            ("phi3", "qkv_proj.weight", "(kv_heads×heads×8 + kv_heads×8 + kv_heads×8)"),
            ("phi3", "gate_up_proj.weight", "(mlp + mlp)"),
            ("gpt_oss", "experts.gate_up_proj", "expert_mlp×2"),
            ("mixtral", "experts.gate_up_proj", "(expert_mlp + expert_mlp)"),
            ("lfm2", "conv.in_proj.weight", "(hidden + hidden + hidden)"),
        ],
    )
    def test_what_shapes_leave_open_is_found_by_trying(self, case: str, name: str, form: str) -> None:
        skip_phi3(case)
        found = {str(d) for t in verified(case).small.tensors if t.name.endswith(name) for d in t.dimensions}
        assert form in found


def _breached(monkeypatch: pytest.MonkeyPatch, when: Callable[[set[Axis], int], bool]) -> None:
    """Some trials fail, and those of the size of a head, as positions want them to."""

    def breach(_: object, __: object, axes: Collection[Axis], seed: int) -> str | None:
        return "it is wrong" if Axis.HEAD_DIM in axes or when(set(axes), seed) else None

    monkeypatch.setattr(vouching, "contract_breach", breach)


@pytest.mark.usefixtures("nothing_verified_before")
class TestRefusals:
    def test_no_decoder(self) -> None:
        with pytest.raises(InputError) as refusal:
            verify(BertConfig())
        assert str(refusal.value) == (
            "The teacher has to be a decoder whose students are exact; 'bert' is not: it is an encoder: its "
            "tokens attend both ways. Choose another teacher with --model; `python -m space.families` lists "
            "every type and why."
        )

    def test_an_axis_that_fails_is_refused_with_what_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _breached(monkeypatch, lambda axes, seed: axes == {Axis.MLP} and seed == 3)
        axis_map = verified_axis_map(SMALL)
        assert axis_map.refused == {Axis.MLP: "it is wrong"}
        assert Axis.MLP not in axis_map.free

    def test_one_that_spoils_the_others_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _breached(monkeypatch, lambda axes, _: axes >= {Axis.MLP, Axis.HEADS})
        assert verified_axis_map(SMALL).refused == {Axis.HEADS: "together with the others, it is wrong"}

    def test_a_teacher_without_an_axis_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _breached(monkeypatch, lambda *_: True)
        with pytest.raises(
            InputError, match=r"none of its axes can be cut \(hidden: it is wrong; mlp: it is wrong"
        ):
            verified_axis_map(SMALL)

    def test_a_copy_that_does_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_: PretrainedConfig) -> None:
            raise IndexError("list index out of range")

        monkeypatch.setattr(vouching, "random_teacher", fails)
        with pytest.raises(InputError, match=r"a small copy of it does not run \(list index out of range\)"):
            verify_anew(LlamaConfig())


@pytest.mark.parametrize("case", each(*(case for case in CASES if case not in SAMPLE)))
def test_flags_of_a_teacher_are_those_of_its_copy(case: str) -> None:
    config, small = CASES[case], verified(case).small.config
    assert small.tie_word_embeddings == config.tie_word_embeddings
    assert getattr(small, "attention_bias", None) == getattr(config, "attention_bias", None)
    window = getattr(config, "sliding_window", None)
    assert getattr(small, "sliding_window", None) == (5 if window else window)
