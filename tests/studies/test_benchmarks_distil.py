"""What distillation costs: that the benchmark compares like with like, and that its oracles can fail."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.targets.batch import Batch, Count
from evaluators.distillation.targets.live import LiveTargets
from studies.benchmarks import distil_loss, distil_peers, distil_steps
from studies.benchmarks.distil import HALF, STEP, WIDE, DistilWork, distil_suite
from studies.benchmarks.distil_gpu import LARGE, LargeFound, LargeWork, Pace, figures_of, measured, step_flops
from studies.benchmarks.distil_loss import LossWork, differences, fitting, taken
from studies.benchmarks.distil_models import Marks, Shape, picked
from studies.benchmarks.distil_peers import PEERS, Trained, arguments, beside, peer_figures
from studies.benchmarks.distil_process import Peak, in_process
from studies.benchmarks.distil_steps import CACHED, LIVE, PLAIN, step_figures
from studies.benchmarks.figure import Figure, table
from studies.benchmarks.kept import keep
from studies.benchmarks.rank import TWELVE_LAYERS


def toy(layers: int, hidden: int = 16, mlp: int = 24, vocabulary: int = 64) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )


def weights_of(config: LlamaConfig) -> int:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return int(model.num_parameters())


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


TOY = Shape(toy(2), toy(1), blocks=2, block=6, steps=2)
TOY_LOSS = LossWork(vocabulary=4096, tokens=8192, width=8)


@pytest.fixture(autouse=True)
def one_precision() -> Iterator[None]:
    """Accelerate holds one a process, and tests before and after have theirs."""
    forget()
    yield
    forget()


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in this process, which has the libraries loaded."""

    def here(work: Callable[..., object], *given: object, **named: object) -> object:
        return work(*given, **named)

    for module in (distil_steps, distil_peers, distil_loss):
        monkeypatch.setattr(module, "in_process", here)


# The suite


@pytest.mark.usefixtures("_here")
def test_the_suite_has_a_row_for_every_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_peers, "find_spec", lambda name: None)
    work = DistilWork(step=TOY, peers=(TOY,), loss=TOY_LOSS, rounds=1, turns=1, large=None)
    figures = distil_suite(work)
    steps, peers, (memory, equal) = figures[:4], figures[4:8], figures[8:]
    assert [figure.bound for figure in steps] == [1 / 1.15, 1.5] * 2
    for figure in steps:
        assert figure.ratio == pytest.approx(figure.reference / figure.ours) != math.inf
    assert {figure.missing for figure in peers} == {"not installed"}
    assert {figure.bound for figure in peers} == {1.5, 1 / 0.6}
    assert all(figure.holds for figure in peers)
    assert all(figure.ours > 0 for figure in peers[::2])
    assert (memory.bound, equal.bound, equal.reference) == (8.0, 1.0, 1e-5)
    assert equal.holds
    assert memory.ratio == pytest.approx(memory.reference / memory.ours)
    assert memory.ratio > 1
    assert len({figure.name for figure in figures}) == len(figures)


def test_the_shapes_are_what_their_words_say() -> None:
    teacher, student = weights_of(TWELVE_LAYERS), weights_of(HALF)
    assert student == pytest.approx(20e6, rel=0.02)
    assert teacher / student == pytest.approx(2, rel=0.02)
    assert STEP.tokens == WIDE.tokens >= 2048
    assert WIDE.teacher.vocab_size == WIDE.student.vocab_size == 32_768
    assert STEP.teacher.vocab_size == 4096, "the wide one is a copy"
    assert [picked(shape) for shape in (STEP, WIDE)] == list(CACHED)
    large = weights_of(LARGE.shape.student)
    assert large == pytest.approx(4.5e9, rel=0.01)
    assert LARGE.shape.block == 4096


@pytest.mark.usefixtures("_here")
def test_steps_are_compared_by_their_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, sampled = CACHED
    seconds = {PLAIN: 2.0, LIVE: 3.0, hidden: 2.4, sampled: 1.0}
    monkeypatch.setattr(distil_steps, "step_seconds", lambda shape, rounds: seconds)
    figures = step_figures(TOY, 1)
    assert [f.ratio for f in figures] == pytest.approx([2 / 2.4, 3 / 2.4, 2.0, 3.0])
    assert [f.holds for f in figures] == [False, False, True, True]


def test_time_before_the_first_mark_does_not_count() -> None:
    marks = Marks()
    marks.at = [3.0, 5.0, 6.0]
    assert marks.between() == [2.0, 1.0]


# The peers


def test_a_peer_is_beaten_in_both_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    form = CACHED[0]
    took = {form: (2.0, 300), "trl": (3.0, 500), "modelopt": (2.9, 499)}
    speed, memory = beside(TOY, form, "trl", took, 1 / 0.6)
    assert (speed.ours, speed.reference, speed.ratio) == pytest.approx((6.0, 4.0, 1.5))
    assert memory.ratio == pytest.approx(500 / 300)
    assert speed.holds
    assert memory.holds
    assert [f.holds for f in beside(TOY, form, "modelopt", took, 1 / 0.6)] == [False, False]


def test_a_peer_that_is_not_installed_is_said_to_be_so() -> None:
    form = CACHED[0]
    speed, _ = beside(TOY, form, "trl", {form: (2.0, 300)}, 1.0)
    assert table([speed]).splitlines()[1].split()[-6:] == ["not", "installed", "-", "≥", "1.5", "-"]
    row = json.loads(json.dumps(speed.row(), allow_nan=False))
    assert (row["reference"], row["ratio"], row["missing"]) == (None, None, "not installed")


@pytest.mark.usefixtures("_here")
def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def trained(side: str, shape: Shape) -> Trained:
        asked.append(side)
        return Trained([float(len(asked))], 1)

    monkeypatch.setattr(distil_peers, "find_spec", lambda name: object())
    monkeypatch.setattr(distil_peers, "trained", trained)
    figures = peer_figures(TOY, turns=2)
    assert asked == [picked(TOY), *PEERS] * 2
    # Ours ran first and fourth, the peer second and fifth.
    assert figures[0].ratio == pytest.approx((2 + 5) / (1 + 4))


def test_peers_train_by_the_same_rules(tmp_path: Path) -> None:
    told = arguments(TOY, tmp_path)
    assert told["max_steps"] == TOY.steps + 1
    assert told["per_device_train_batch_size"] == TOY.blocks
    assert (told["bf16"], told["optim"], told["max_grad_norm"]) == (True, "adamw_torch_fused", 1.0)


@pytest.mark.parametrize("side", ["trl", "modelopt"])
def test_a_peer_trains(side: str) -> None:
    pytest.importorskip(side, reason="the extra `peers` is not installed")
    found = in_process(distil_peers.trained, side, TOY)
    assert len(found.seconds) == TOY.steps
    assert found.peak > 0


# Memory


def test_a_process_of_its_own() -> None:
    assert in_process(os.getpid) != os.getpid()


def test_the_peak_is_that_of_what_was_held_meanwhile() -> None:
    before = torch.ones(2**22)
    peak = Peak()
    held = torch.ones(2**24)
    del held
    assert peak.bytes() == pytest.approx(2**26, rel=0.1)
    assert before.sum() == 2**22


def test_a_difference_is_seen(tmp_path: Path) -> None:
    work, kept = LossWork(vocabulary=32, tokens=8, width=4), tmp_path / "kept"
    taken(work, 4, kept)
    value, states, head = torch.load(kept)
    assert differences([value, states, head], [value, states, head]) == [0.0, 0.0, 0.0]
    assert max(differences([value, states * 1.001, head], [value, states, head])) > 1e-5


@pytest.mark.parametrize(("gigabytes", "tokens"), [(64, 4096), (8, 2048), (1, 256)])
def test_as_many_tokens_as_fit(gigabytes: int, tokens: int) -> None:
    assert fitting(LossWork(), gigabytes * 10**9).tokens == tokens


class Live(TorchDispatchMode):
    """Bytes of all tensors made within that are alive, their most so far, and the largest tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.largest = 0
        self._known = weakref.WeakSet[Any]()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def bytes_of_a_step(tokens: int, vocabulary: int) -> Live:
    """Memory of a distillation step at full size, of tensors that have shapes and no values."""
    with FakeTensorMode():
        models: list[PreTrainedModel] = [
            AutoModelForCausalLM.from_config(toy(layers, vocabulary=vocabulary)) for layers in (1, 2)
        ]
        student, teacher = models
        text = torch.zeros(1, tokens, dtype=torch.long)
        distillation = Distillation(student, LiveTargets(teacher, text), Loss())
        said = torch.zeros(1, tokens, teacher.config.hidden_size)
        live = Live()
        with live:
            loss, _ = distillation(Batch(text, (said,)), Count(tokens, tokens - 1))
            loss.backward()
    return live


def test_logits_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocabulary = 4096, 131_072
    logits = 4 * tokens * vocabulary
    live = bytes_of_a_step(tokens, vocabulary)
    assert live.largest <= logits / 16
    # Several tensors of 2^24 logits, and the head's gradient.
    assert live.most <= logits / 4
    monkeypatch.setattr("evaluators.distillation.module.token_slice", lambda vocabulary: tokens)
    whole = bytes_of_a_step(tokens, vocabulary)
    assert whole.largest >= logits
    assert whole.most >= 8 * live.most


# At full size


def test_the_large_figures() -> None:
    paces = {"hidden": Pace(30.0, 5e14, 10**11), "live": Pace(20.0, 3e14, 2 * 10**11)}
    found = LargeFound(paces, 1e15, (2.0, 1.0))
    rows = {figure.name.split(": ", 1)[1]: figure for figure in figures_of(TOY, found, 1.5e11)}
    assert {name: (row.ratio, row.holds) for name, row in rows.items()} == {
        "hidden, model TFLOP/s, beside a matrix product": (0.5, True),
        "hidden, peak GB, beside the GPU's": (1.5, True),
        "hidden, tokens per s, beside live": (1.5, True),
        "live, model TFLOP/s, beside a matrix product": (0.3, False),
        "live, peak GB, beside the GPU's": (0.75, False),
        "student cut, s, beside its copy": (0.5, True),
    }


def test_operations_of_a_step_by_hand() -> None:
    shape = Shape(toy(3, hidden=32, mlp=40), toy(3), blocks=2, block=6, steps=1)
    student, teacher = (AutoModelForCausalLM.from_config(c) for c in (shape.student, shape.teacher))
    layer, narrow = (
        2 * 32 * 16 + 2 * 32 * 8 + 3 * 32 * 40 + 2 * 32,
        2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 32,
    )
    mine, theirs = 3 * narrow + 16 + 16 * 64, 3 * layer + 32 + 32 * 64
    assert step_flops(student, teacher, shape, live=False) == 12 * (6 * mine + 2 * 32 * 64)
    assert step_flops(student, teacher, shape, live=True) == 12 * (6 * mine + 2 * theirs)


@pytest.mark.slow
def test_the_large_measurement_at_toy_size() -> None:
    shape = Shape(toy(2, hidden=32, mlp=40), toy(2), blocks=2, block=6, steps=2)
    found = measured(LargeWork(shape, matrix=64))
    assert list(found.paces) == ["hidden", "live"]
    for pace in found.paces.values():
        assert min(pace.tokens, pace.flops) > 0
    assert min(*found.extraction, found.matrix_flops) > 0


# What is kept


def test_figures_are_kept_with_what_they_were_measured_on(tmp_path: Path) -> None:
    figure = Figure("things", 3.0, 2.0, 1.5, 1.0)
    path = keep(tmp_path / "results", "distil", [figure])
    about = json.loads(path.read_text())
    assert path.name.startswith("distil_")
    assert about["figures"] == [figure.row()]
    assert about["versions"]["torch"] == torch.__version__
    assert set(about) == {"date", "device", "load", "python", "versions", "figures"}
