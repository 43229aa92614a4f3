"""Another model than the teacher may teach: its targets are learnt, its states are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.huggingface.final_states import final_states
from evaluators.teacher import Teacher, load_teacher
from search.settings.config import RunConfig
from search.settings.resolved import Resolved
from search.settings.targets_plan import places_of, setting_of
from search.stages.targets import targets_of, teaching_model
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from search.training.training import Trainer, TrainingJob
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.search.synthetic import run_config


@pytest.fixture(scope="module")
def original(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tiny teacher's tokens, half as wide again and of one layer more."""
    folder = Path(shutil.copytree(tiny_teacher, tmp_path_factory.mktemp("original") / "model"))
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_teacher, hidden_size=24, num_hidden_layers=3, head_dim=6)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def config_of(teacher: Path, taught_by: Path | str, **changes: Any) -> RunConfig:
    fields = {"block": 32, "rung_tokens": (64,), "rung_candidates": (1,), "distillation_blocks": 4, **changes}
    return run_config(teacher=str(teacher), taught_by=str(taught_by), **fields)


def load(path: Path) -> Teacher:
    return load_teacher(str(path), revision=None, device=torch.device("cpu"), dtype=torch.float32)


def map_of(path: Path) -> AxisMap:
    return verified_axis_map(LlamaConfig.from_pretrained(path))


def resolved(config: RunConfig, teacher: Path, teaching: Path) -> Resolved:
    axis_map = map_of(teacher)
    budget = Budget(round(0.8 * load(teacher).model.num_parameters()), 0.2)
    space = enumerate_space(axis_map, budget)
    nothing = cast(Any, None)
    return Resolved(config, axis_map, space, 0, nothing, space, nothing, teaching_map=map_of(teaching))


def test_the_teacher_teaches_unless_another_is_named(tiny_teacher: Path, original: Path) -> None:
    teacher = load(tiny_teacher)
    assert teaching_model(config_of(tiny_teacher, ""), teacher) is teacher
    found = teaching_model(config_of(tiny_teacher, original), teacher)
    assert (found.id, found.model.config.hidden_size) == (str(original), 24)
    assert not found.model.training


def test_a_loss_that_asks_nobody_loads_nobody(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher)
    config = config_of(tiny_teacher, "not/there", loss="cross-entropy")
    assert teaching_model(config, teacher) is teacher


def test_targets_and_states_are_those_of_the_model_that_teaches(
    tiny_teacher: Path, original: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_teacher, original, states=("late", "embedding"), targets="hidden")
    run = resolved(config, tiny_teacher, original)
    setting = setting_of(run, 128)
    assert (setting.vocabulary, setting.width, setting.states) == (257, 24, 2 * 24)
    whole = LlamaForCausalLM.from_pretrained(original)
    vectors = (2 * 3 + 1) * 24
    assert setting.teacher == whole.num_parameters() - 257 * 24 - vectors
    assert [str(place) for place in places_of(run)] == ["block-0", "embedding"]
    tokens = torch.randint(257, (4, 32), generator=torch.Generator().manual_seed(0))
    teaching = teaching_model(config, load(tiny_teacher))
    found, _ = targets_of(
        run,
        teaching,
        Corpus("text", tokens, tokens, tokens, 1, "a text"),
        RunDirectory(tmp_path / "run"),
        Accelerator(cpu=True),
        Console(quiet=True),
    )
    assert isinstance(found, CachedTargets)
    batch = found.batch(torch.tensor([2, 0]))
    with torch.no_grad():
        expected = whole(tokens[[2, 0]], output_hidden_states=True)
    torch.testing.assert_close(batch.targets[0], final_states(whole, tokens[[2, 0]]).bfloat16())
    torch.testing.assert_close(batch.states["block-0"], expected.hidden_states[1].bfloat16())
    logits = found.predictions(batch.targets[0].flatten(0, 1)).logits  # type: ignore[union-attr]
    torch.testing.assert_close(logits, expected.logits.flatten(0, 1), atol=0.02, rtol=0.02)


def test_a_student_is_compared_with_the_layers_of_the_model_that_teaches(
    tiny_teacher: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last block but two: of five layers block 2, of the tiny teacher's two there is none but block 0."""
    asked: list[Any] = []
    monkeypatch.setattr("search.training.training.distil", lambda *_, states, **__: asked.append(states))
    config = LlamaConfig.from_pretrained(original, num_hidden_layers=5)
    wanted = config_of(tiny_teacher, original, states=("late",))
    trainer = Trainer(wanted, LlamaForCausalLM(config), torch.zeros(1, 32), cast(Any, None))
    student = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    trainer.train(student, cast(Any, None), TrainingJob(64, 1e-3, 1), lambda _: None)
    assert [(str(pair.student), str(pair.teacher)) for pair in asked[0].pairs] == [("block-0", "block-2")]


def test_another_number_of_tokens_is_refused(tiny_teacher: Path, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other"))
    config = LlamaConfig.from_pretrained(original, vocab_size=300)
    LlamaForCausalLM(config).save_pretrained(other)
    with pytest.raises(InputError) as caught:
        teaching_model(config_of(tiny_teacher, other), load(tiny_teacher))
    assert str(caught.value) == (
        f"Whoever teaches a student has to have its vocabulary; {other} was to teach what is cut from "
        f"{tiny_teacher}, and they have 300 and 257 tokens. Take --taught-by previous."
    )


def test_other_tokens_of_the_same_number_are_refused(
    tiny_teacher: Path, original: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other"))
    path = other / "tokenizer.json"
    about = json.loads(path.read_text())
    vocabulary = about["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match="their tokenizers number tokens differently"):
        teaching_model(config_of(tiny_teacher, other), load(tiny_teacher))
