from __future__ import annotations

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation import targets as targets_module
from evaluators.distillation.divergence import chunked, forward_kl
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.cached import CachedTargets, cache_bytes, cache_targets, is_cached
from evaluators.distillation.targets.live import LiveTargets
from evaluators.final_states import final_states, logits_of, states_width
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model, tiny_student

TOKENS = random_tokens(7, 6)
NAME = "a fingerprint"


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def path(teacher: PreTrainedModel, tmp_path: Path) -> Path:
    """Of a whole cache of ``TOKENS``."""
    path = tmp_path / "targets" / "states.bin"
    cache_targets(teacher, TOKENS, path, NAME)
    return path


def test_cached_targets_are_the_live_ones_rounded(teacher: PreTrainedModel, path: Path) -> None:
    live, cached = LiveTargets(teacher, TOKENS), CachedTargets(path, teacher, TOKENS)
    assert (live.blocks, cached.blocks) == (7, 7)
    for numbers in ([0, 1, 2, 3, 4, 5, 6], [6, 0, 3], [2, 2]):
        tokens, states = live.batch(torch.tensor(numbers))
        same_tokens, rounded = cached.batch(torch.tensor(numbers))
        assert torch.equal(tokens, same_tokens)
        assert tokens.dtype == torch.long
        assert torch.equal(tokens, TOKENS[numbers].long())
        # bfloat16 has 8 significant bits: rounding moves a value by at most 2⁻⁸ of itself.
        torch.testing.assert_close(rounded.float(), states, rtol=2**-8, atol=1e-6)


def kl(student: PreTrainedModel, mine: Tensor, states: Tensor, source: Targets) -> Tensor:
    return chunked(forward_kl, mine, partial(logits_of, student), states, source.head, VOCABULARY)


def test_the_divergence_is_hardly_moved_by_the_rounding(teacher: PreTrainedModel, path: Path) -> None:
    """The error of a logit is a sum of independent roundings; that of a distribution is second order."""
    student, numbers = tiny_student(), torch.arange(7)
    losses = []
    for source in (LiveTargets(teacher, TOKENS), CachedTargets(path, teacher, TOKENS)):
        tokens, states = source.batch(numbers)
        mine = final_states(student, tokens)
        losses.append(kl(student, mine, states, source).item())
    assert losses[0] == pytest.approx(losses[1], rel=0.005)
    assert losses[0] != losses[1]


def test_a_cached_teacher_is_its_own_student(teacher: PreTrainedModel, path: Path) -> None:
    cached = CachedTargets(path, teacher, TOKENS)
    tokens, states = cached.batch(torch.arange(7))
    loss = kl(teacher, final_states(teacher, tokens), states, cached)
    assert 0 <= loss.item() < 1e-4


def test_targets_carry_no_gradient(teacher: PreTrainedModel, path: Path) -> None:
    for source in (LiveTargets(teacher, TOKENS), CachedTargets(path, teacher, TOKENS)):
        states = source.batch(torch.tensor([0]))[1]
        assert not states.requires_grad
        assert not source.head(states[0]).requires_grad


@pytest.mark.parametrize("tokens_at_once", [1, 18, 4096])
def test_the_file_is_as_large_as_said_however_it_is_made(
    teacher: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    monkeypatch.setattr(targets_module, "_TOKENS_AT_ONCE", tokens_at_once)
    told: list[int] = []
    path = tmp_path / "states.bin"
    cache_targets(teacher, TOKENS, path, NAME, told.append)
    assert path.stat().st_size == cache_bytes(TOKENS.numel(), 16) == 2 * 7 * 6 * 16
    assert sum(told) == 7
    assert max(told) == {1: 1, 18: 3, 4096: 7}[tokens_at_once]
    assert is_cached(path, NAME)


def test_a_whole_cache_is_recognised(path: Path) -> None:
    assert is_cached(path, NAME)
    assert {file.name for file in path.parent.iterdir()} == {"states.bin", "states.json"}


def about(path: Path) -> Path:
    return path.with_suffix(".json")


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "states cut short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "states longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "states empty": lambda path: path.write_bytes(b""),
    "one bit changed": change_byte,
    "no states": Path.unlink,
    "no JSON": lambda path: about(path).unlink(),
    "JSON cut short": lambda path: about(path).write_bytes(about(path).read_bytes()[:-3]),
    "JSON empty": lambda path: about(path).write_text(""),
    "JSON not UTF-8": lambda path: about(path).write_bytes(b"\xff\xfe\xfd"),
    "JSON without keys": lambda path: about(path).write_text("{}"),
    "JSON without a checksum": lambda path: about(path).write_text(json.dumps({"fingerprint": NAME})),
    "JSON a list": lambda path: about(path).write_text("[]"),
    "JSON null": lambda path: about(path).write_text("null"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_not_used_and_can_be_made_again(
    teacher: PreTrainedModel, path: Path, damage: Callable[[Path], object]
) -> None:
    damage(path)
    assert not is_cached(path, NAME)
    cache_targets(teacher, TOKENS, path, NAME)
    assert is_cached(path, NAME)


def test_a_cache_of_something_else_is_not_used(teacher: PreTrainedModel, path: Path) -> None:
    assert not is_cached(path, "another fingerprint")
    cache_targets(teacher, TOKENS[:3], path, "another fingerprint")
    assert is_cached(path, "another fingerprint")
    assert not is_cached(path, NAME)


def full_disk(path: Path) -> None:
    """Whatever is written to the path from now on does not fit, as the system itself says it."""
    path.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("suffix", [".new", ".json.new"])
def test_a_full_disk_leaves_the_earlier_cache_as_it_was(
    teacher: PreTrainedModel, path: Path, suffix: str
) -> None:
    full_disk(path.with_suffix(suffix))
    with pytest.raises(OSError, match="No space left") as error:
        cache_targets(teacher, TOKENS[:3], path, "another fingerprint")
    assert error.value.errno == errno.ENOSPC
    assert is_cached(path, NAME)
    assert {file.name for file in path.parent.iterdir()} == {"states.bin", "states.json"}


def test_stopping_leaves_nothing_unfinished(teacher: PreTrainedModel, path: Path) -> None:
    def stop(blocks: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_targets(teacher, TOKENS, path, "another fingerprint", stop)
    assert is_cached(path, NAME)
    assert {file.name for file in path.parent.iterdir()} == {"states.bin", "states.json"}


def test_killed_between_states_and_json_nothing_is_believed(
    teacher: PreTrainedModel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON that is still there names the states before, and the checksum tells them apart."""
    moves: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr("evaluators.distillation.targets.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_targets(teacher, TOKENS + 1 & 31, path, "another fingerprint")
    assert [target.name for target in moves] == ["states.bin", "states.json"]
    assert not is_cached(path, NAME)
    assert not is_cached(path, "another fingerprint")


def test_a_bfloat16_teacher_is_cached_exactly(tmp_path: Path) -> None:
    teacher = tiny_model().bfloat16()
    path = tmp_path / "states.bin"
    cache_targets(teacher, TOKENS, path, NAME)
    states: Tensor = CachedTargets(path, teacher, TOKENS).batch(torch.arange(7))[1]
    assert torch.equal(states, LiveTargets(teacher, TOKENS).batch(torch.arange(7))[1])


def test_the_head_reads_rounded_states_in_its_own_precision(teacher: PreTrainedModel, path: Path) -> None:
    cached = CachedTargets(path, teacher, TOKENS)
    states = cached.batch(torch.arange(7))[1].flatten(0, 1)
    assert states.dtype == torch.bfloat16
    with torch.no_grad():
        wanted = states.float() @ teacher.get_parameter("lm_head.weight").T
    torch.testing.assert_close(cached.head(states), wanted)


def test_states_of_a_head_that_reads_fewer_numbers_than_hidden(tmp_path: Path) -> None:
    """OPT projects its last states down before the head."""
    teacher = tiny_model("opt", word_embed_proj_dim=12, ffn_dim=24)
    path = tmp_path / "states.bin"
    cache_targets(teacher, TOKENS, path, NAME)
    assert path.stat().st_size == cache_bytes(TOKENS.numel(), states_width(teacher)) == 2 * 7 * 6 * 12
    tokens, states = CachedTargets(path, teacher, TOKENS).batch(torch.arange(7))
    torch.testing.assert_close(states.float(), final_states(teacher, tokens), rtol=2**-8, atol=1e-6)
