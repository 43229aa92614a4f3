"""The targets of a run: where rungs and retraining read them, what is said, and that a choice stays."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.targets.batch import FormName, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.choice import TargetsSetting, size_text
from evaluators.distillation.targets.live import Hidden, LiveTargets, TextTargets
from evaluators.distillation.targets.sparse import Sampled, TopK
from evaluators.huggingface.residence import Residence
from evaluators.teacher import Teacher
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.settings.targets_plan import TargetsPlan, free_bytes, plan_targets, setting_of
from search.stages.targets import check_targets, targets_of
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.input_error import InputError
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.search.synthetic import run_config

GB = 10**9
#: 16 blocks, of which the rungs read 4; hidden states of all are 4.4 MB.
SETTING = TargetsSetting(
    tokens=2048, block=128, vocabulary=1024, width=1024, student=10**8, teacher=10**8, every_logit=False
)
ALL, SHORT = SETTING.bytes_of(FormName.HIDDEN), replace(SETTING, tokens=512).bytes_of(FormName.HIDDEN)
LIVE = TargetsPlan(FormName.LIVE, 0)


@pytest.mark.parametrize(
    ("changes", "free", "wanted"),
    [
        ({}, 2 * ALL, TargetsPlan(FormName.HIDDEN, 16)),
        ({}, 2 * ALL - 1, TargetsPlan(FormName.SAMPLED, 16)),
        ({"targets": "hidden"}, 2 * ALL - 1, TargetsPlan(FormName.HIDDEN, 4)),
        ({"targets": "hidden"}, 2 * SHORT, TargetsPlan(FormName.HIDDEN, 4)),
        ({"targets": "top-k"}, GB, TargetsPlan(FormName.TOP_K, 16)),
        ({"targets": "live"}, GB, LIVE),
        ({"rung_tokens": (100, 10_000)}, 2 * ALL, TargetsPlan(FormName.HIDDEN, 16)),
        ({}, 0, LIVE),
        ({"loss": "cross-entropy"}, GB, LIVE),
        ({"loss": "cross-entropy", "states": ("late",)}, GB, TargetsPlan(FormName.HIDDEN, 16)),
    ],
)
def test_what_is_kept(changes: dict[str, Any], free: int, wanted: TargetsPlan) -> None:
    config = run_config(**{"rung_tokens": (200, 500), **changes})
    assert plan_targets(config, SETTING, free) == wanted


def test_a_loss_on_all_logits_is_never_sampled() -> None:
    setting, config = replace(SETTING, every_logit=True), run_config(rung_tokens=(200, 500))
    assert plan_targets(config, setting, 2 * ALL - 1) == TargetsPlan(FormName.HIDDEN, 4)
    assert plan_targets(config, setting, 2 * SHORT - 1) == LIVE


def test_what_does_not_fit_even_for_the_rungs_is_refused() -> None:
    with pytest.raises(InputError, match="512 tokens as hidden states need"):
        plan_targets(run_config(rung_tokens=(200, 500), targets="hidden"), SETTING, 2 * SHORT - 1)


@pytest.fixture
def resolved(demo_config: Path) -> Resolved:
    return _resolved(demo_config)


@cache
def _resolved(demo_config: Path) -> Resolved:
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu", rung_tokens=("256", "512"))
    return resolve(replace(flags, retrain_tokens="2048", states=("late", "embedding")))


def test_sizes_are_the_teachers_and_the_largest_students(resolved: Resolved) -> None:
    setting = setting_of(resolved, 2048)
    assert (setting.vocabulary, setting.width, setting.states) == (1024, 128, 256)
    assert setting.teacher == 1_837_184 - 1024 * 128 - 17 * 128, "all but the embedding table and the norms"
    assert 0.8e6 < setting.student < 1e6
    assert setting_of(resolved, 2048, width=12).width == 12
    sampled = replace(resolved, config=replace(resolved.config, loss="mse", states=()))
    assert setting_of(sampled, 2048).every_logit
    assert setting_of(sampled, 2048).states == 0


class Run:
    """A run directory, and what was said in it."""

    def __init__(self, resolved: Resolved, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.monkeypatch, self.resolved = RunDirectory(out / "run"), monkeypatch, resolved
        self.tokens, self.learnt = random_tokens(16, 128), (random_tokens(16, 128, seed=1) > 18)
        self.model = tiny_model(hidden_size=128, num_hidden_layers=8, max_position_embeddings=128)
        self.said: list[str] = []

    def targets(self, free: int = GB, **changes: Any) -> tuple[Targets, Targets]:
        """Those of rungs and retraining, on a disk with so many bytes free."""
        config = replace(self.resolved.config, **{"states": (), **changes})
        resolved = replace(self.resolved, config=config)
        console = Console(quiet=True)
        self.monkeypatch.setattr(console, "say", self.said.append)
        self.monkeypatch.setattr("search.stages.targets.free_bytes", lambda path: free)
        console.forecast.planned.update(forward=2048)
        check_targets(resolved, self.directory)
        teacher = {"model": self.model, "residence": Residence(self.model), "fingerprint": "a teacher"}
        found = targets_of(
            resolved,
            cast(Teacher, SimpleNamespace(**teacher)),
            Corpus("text", self.tokens, self.tokens, self.tokens, 1, "a text", self.learnt),
            self.directory,
            cast(Accelerator, SimpleNamespace(autocast=nullcontext)),
            console,
        )
        assert console.forecast.done["forward"] == 2048, "all that was planned is done or left out"
        return found


@pytest.fixture
def run(resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(resolved, tmp_path, monkeypatch)


def test_one_cache_serves_rungs_and_retraining(run: Run) -> None:
    rungs, retraining = run.targets()
    assert rungs is retraining
    assert isinstance(rungs, CachedTargets)
    assert (rungs.blocks, rungs.missing()) == (16, [])
    assert run.said == [
        "caching the teacher's targets of 2,048 tokens as hidden states: 541 kB of 1 GB free; "
        "--targets chooses"
    ]
    run.targets()
    assert run.said[1:] == [f"reusing the teacher's targets in {run.directory.targets}"]


def test_retraining_asks_live_what_does_not_fit(run: Run) -> None:
    rungs, retraining = run.targets(free=300_000, targets="hidden")
    assert isinstance(rungs, CachedTargets)
    assert isinstance(retraining, LiveTargets)
    assert (rungs.blocks, retraining.blocks) == (4, 16)
    assert torch.equal(rungs.batch(torch.tensor([3])).mask, run.learnt[3:4])
    assert torch.equal(retraining.batch(torch.tensor([15])).mask, run.learnt[15:])


@pytest.mark.parametrize(("name", "form"), [("hidden", Hidden), ("sampled", Sampled), ("top-k", TopK)])
def test_a_form_can_be_asked_for(name: str, form: type, run: Run) -> None:
    rungs, _ = run.targets(targets=name, temperature=2.0, seed=5)
    assert isinstance(rungs, CachedTargets)
    assert isinstance(rungs.form, form)
    wanted = {"hidden": {}, "sampled": {"temperature": 2.0, "seed": 5}, "top-k": {"temperature": 2.0}}[name]
    assert wanted.items() <= rungs.form.description.items()


def test_states_are_kept_beside(run: Run) -> None:
    rungs, _ = run.targets(states=("late", "embedding"))
    states = rungs.batch(torch.arange(2)).states
    assert {name: tuple(state.shape) for name, state in states.items()} == {
        "block-5": (2, 128, 128),
        "embedding": (2, 128, 128),
    }


def test_live_and_text_keep_nothing(run: Run) -> None:
    live, again = run.targets(targets="live")
    assert live is again
    assert isinstance(live, LiveTargets)
    assert run.said == [
        "the teacher's targets are kept nowhere: it runs beside the student; --targets chooses"
    ]
    text, _ = run.targets(loss="cross-entropy")
    assert isinstance(text, TextTargets)
    for one in (live, text):
        assert torch.equal(one.batch(torch.tensor([5])).mask, run.learnt[5:6])
    assert not list(run.directory.targets.glob("*.bin"))


@pytest.mark.parametrize(("first", "then"), [(GB, 0), (GB, 300_000), (0, GB), (300_000, GB)])
def test_a_run_keeps_its_choice_whatever_the_disk_says_then(first: int, then: int, run: Run) -> None:
    before, after = run.targets(first), run.targets(then)
    assert [type(one) for one in before] == [type(one) for one in after]
    assert [one.blocks for one in before] == [one.blocks for one in after]


def test_a_choice_that_cannot_be_read_is_made_again(run: Run) -> None:
    run.targets()
    path = run.directory.targets / "choice.json"
    assert json.loads(path.read_text()) == {"form": "hidden", "blocks": 16}
    for torn in ("", "[]", '{"form": "hid', '{"form": "odd", "blocks": 1}'):
        path.write_text(torn)
        rungs, _ = run.targets()
        assert rungs.blocks == 16
        assert run.said[-1].startswith("reusing")


def test_a_process_that_was_stopped_goes_on_where_it_was(run: Run) -> None:
    run.targets()
    folder = run.directory.targets
    content = (folder / "index.bin").read_bytes()
    (folder / "index.bin").write_bytes(content[: 10 * 32])
    run.targets()
    assert "as hidden states, 1,280 of them there already: " in run.said[-1]


def test_a_wish_that_cannot_be_granted_is_refused_before_anything_is_made(run: Run) -> None:
    with pytest.raises(InputError, match="may take half of the free disk"):
        run.targets(free=100, targets="hidden")
    assert not run.directory.path.exists()


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)
    assert (size_text(123_456_789), size_text(45_000_000_000)) == ("123 MB", "45 GB")
