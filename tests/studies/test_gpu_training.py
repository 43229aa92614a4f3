"""Which trainings the acceptance on a GPU measures: shapes, plans, steps that are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluators.distillation import module
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.batch import FormName
from evaluators.metrics.pace import Pace
from search.settings.ledger import MARGIN
from search.settings.resolved import Resolved
from studies.gpu import pace
from studies.gpu.bench import Bench, NotHereError, OutOfTimeError
from studies.gpu.findings import Findings
from studies.gpu.plans import plan_of, resolved_run
from studies.gpu.shapes import FULL, TOY, Shape


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "figures.json", {"device": "none"})


@pytest.fixture
def bench(findings: Findings) -> Bench:
    findings.begin("memory")
    return Bench("memory", TOY, findings, 60.0, 60.0)


@pytest.mark.parametrize(
    ("shape", "parameters"), [*zip(FULL.shapes, (8_030_261_248, 8_190_735_360), strict=True)]
)
def test_the_shapes_are_the_published_ones(shape: Shape, parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config)
    assert model.num_parameters() == parameters


@pytest.fixture(scope="module")
def _no_timing() -> Iterator[None]:
    """No product of matrices is timed for a plan."""
    fast = Pace(1e9, 1e10, 1e-6, timed=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.settings.resolution.pace_estimate", lambda *_: fast)
        yield


@pytest.fixture(scope="module")
def resolved(_no_timing: None, tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    """The run that cuts the tiny teacher."""
    return resolved_run(TOY.shapes[0], TOY, tmp_path_factory.mktemp("configs"))


def test_steps_are_whole_micro_batches_and_two_at_least(resolved: Resolved, tmp_path: Path) -> None:
    plan = plan_of(resolved, FormName.HIDDEN, tmp_path)
    assert plan.config.targets == "hidden"
    batch = plan.config.batch_blocks

    def step(micro: int, blocks: int) -> int:
        return replace(plan, micro=micro).with_step(blocks).config.batch_blocks

    assert [step(1, 0), step(1, 3), step(2, 3), step(3, 0)] == [2, 3, 4, 6]
    assert step(batch, 0) == step(1, 100) == batch, "the plan's batch is the most"


@pytest.mark.slow
def test_80_gb_train_by_adamw_from_cached_targets_and_with_8_bits_beside_a_teacher(tmp_path: Path) -> None:
    resolved = resolved_run(FULL.shapes[0], FULL, tmp_path, "80GB")
    assert (resolved.config.block, resolved.config.batch_blocks) == (4096, 32)
    for form, optimizer in ((FormName.HIDDEN, "adamw"), (FormName.LIVE, "adamw-8bit")):
        plan = plan_of(resolved, form, tmp_path)
        assert plan.config.optimizer == plan.ledger.optimizer == optimizer
        assert sum(plan.foretold.values()) < (1 - MARGIN) * 80e9
        assert ("teacher" in plan.foretold) is (form is FormName.LIVE)
        assert plan.foretold["weights"] == pytest.approx(
            OptimizerName(optimizer).weights.itemsize * 4e9, rel=0.03
        )


def test_8_bit_states_are_skipped_where_torchao_is_missing(
    resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotHereError, match="torchao"):
        plan_of(resolved, FormName.LIVE, tmp_path, (OptimizerName.ADAMW_8BIT,))


# Pace


class Steps:
    """A subject whose training takes steps and nothing else."""

    def __init__(self) -> None:
        self.taken, self.asked = 0, 0

    def train(
        self, plan: Any, student: Any, targets: Any, steps: int, advance: Callable[[int], None]
    ) -> None:
        self.asked = steps
        advance(0)
        for _ in range(min(steps, 100)):
            self.taken += 1
            advance(1)


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_timed_behind_those_that_warm_up(bench: Bench, compiled: bool) -> None:
    subject: Any = Steps()
    plan: Any = None
    assert len(pace._step_seconds(bench, subject, plan, (None, None), compiled=compiled)) == 2
    assert subject.taken == 3 + compiled, "an endless training is ended"
    assert (subject.asked > 10) is compiled


def test_nothing_timed_is_no_pace(findings: Findings) -> None:
    subject: Any = Steps()
    plan: Any = None
    late = Bench("pace", TOY, findings, -1.0, -1.0)
    with pytest.raises(OutOfTimeError):
        pace._step_seconds(late, subject, plan, (None, None), compiled=False)
    assert subject.taken == 0


def test_what_is_missing_for_a_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, liger = pace.Variant(FormName.LIVE, compiled=True), pace.Variant(FormName.LIVE, liger=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pace, "liger_installed", lambda: False)
    with pytest.raises(NotHereError, match="liger-kernel is not installed"):
        pace.check_here(liger)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotHereError, match="triton"):
        pace.check_here(compiled)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(NotHereError, match="C compiler"):
        pace.check_here(compiled)
    monkeypatch.setattr("shutil.which", lambda name: name)
    pace.check_here(compiled)
    pace.check_here(pace.Variant(FormName.LIVE))


def test_liger_is_used_where_the_variant_has_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "liger_installed", lambda: True)
    with pace._without_liger(pace.Variant(FormName.LIVE)):
        assert not module.liger_installed()
    with pace._without_liger(pace.Variant(FormName.LIVE, liger=True)):
        assert module.liger_installed()
