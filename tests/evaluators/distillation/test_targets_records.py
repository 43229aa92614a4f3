"""Whatever happens to the files of a cache, what is read from it is what the teacher says."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StateKind, StatePlace
from evaluators.distillation.targets import records as records_module
from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.choice import TargetsSetting
from evaluators.distillation.targets.live import Hidden
from evaluators.distillation.targets.records import OVERHEAD, Records
from evaluators.distillation.targets.sparse import Sampled
from tests.evaluators.tiny_models import random_tokens, tiny_model

BLOCKS = 7
TOKENS = random_tokens(BLOCKS, 6)
OTHERS = random_tokens(BLOCKS, 6, seed=1)
ALL = torch.arange(BLOCKS)
SETTING = TargetsSetting(tokens=42, block=6, vocabulary=37, width=16, student=1, teacher=1, every_logit=False)


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model()


def opened(
    teacher: PreTrainedModel, folder: Path, tokens: Tensor = TOKENS, name: str = "a teacher"
) -> CachedTargets:
    return CachedTargets(teacher, tokens, Hidden(teacher), folder, name)


def filled(targets: CachedTargets) -> int:
    """How many blocks the teacher was asked about."""
    made: list[int] = []
    targets.fill(made.append)
    return sum(made)


@pytest.fixture
def folder(teacher: PreTrainedModel, tmp_path: Path) -> Path:
    """Of a whole cache of ``TOKENS``."""
    folder = tmp_path / "targets"
    assert filled(opened(teacher, folder)) == BLOCKS
    return folder


@pytest.fixture(scope="module")
def right(teacher: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The states of ``TOKENS`` and of ``OTHERS``, from caches that nothing happened to."""
    found = {}
    for name, tokens in {"tokens": TOKENS, "others": OTHERS}.items():
        targets = opened(teacher, tmp_path_factory.mktemp("right"), tokens)
        targets.fill()
        found[name] = targets.batch(ALL).targets[0]
    return found


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The warnings so far."""
    monkeypatch.setattr(logging.getLogger("evaluators"), "propagate", True)
    return lambda: list(caplog.messages)


def test_the_files_are_as_large_as_was_said(folder: Path, teacher: PreTrainedModel) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {"records.bin", "index.bin", "header.json", "lock"}
    states, size = 2 * 42 * 16, sizes["records.bin"] + sizes["index.bin"]
    assert states < size <= SETTING.bytes_of(FormName.HIDDEN) == states + 7 * OVERHEAD
    (folder / "left.new").write_text("by a process that was killed")
    targets = opened(teacher, folder)
    assert not filled(targets)
    assert targets.records.size == size


def test_drawn_ones_are_at_most_as_large(tmp_path: Path, teacher: PreTrainedModel) -> None:
    targets = CachedTargets(teacher, TOKENS, Sampled(teacher), tmp_path, "a teacher")
    targets.fill()
    size = sum((tmp_path / name).stat().st_size for name in ("records.bin", "index.bin"))
    assert size <= SETTING.bytes_of(FormName.SAMPLED)


def test_a_whole_cache_asks_the_teacher_nothing(folder: Path, teacher: PreTrainedModel) -> None:
    again = opened(teacher, folder)
    assert again.missing() == []
    assert filled(again) == 0


def test_a_longer_text_uses_the_records_of_a_shorter_one(tmp_path: Path, teacher: PreTrainedModel) -> None:
    assert filled(opened(teacher, tmp_path, TOKENS[:3])) == 3
    assert opened(teacher, tmp_path).missing() == [3, 4, 5, 6]
    assert filled(opened(teacher, tmp_path)) == 4
    assert filled(opened(teacher, tmp_path, TOKENS[:5])) == 0
    assert filled(opened(teacher, tmp_path)) == 0, "a shorter text threw nothing away"


def test_blocks_of_other_tokens_are_made_again(
    folder: Path, teacher: PreTrainedModel, right: dict[str, Tensor]
) -> None:
    mixed = TOKENS.clone()
    mixed[[2, 5]] = OTHERS[[2, 5]]
    targets = opened(teacher, folder, mixed)
    size = (folder / "records.bin").stat().st_size
    assert targets.missing() == [2, 5]
    assert filled(targets) == 2
    (final,) = targets.batch(ALL).targets
    assert torch.equal(final[[2, 5]], right["others"][[2, 5]])
    assert torch.equal(final[[0, 1, 3, 4, 6]], right["tokens"][[0, 1, 3, 4, 6]])
    assert (folder / "records.bin").stat().st_size == size, "in the place of those before"


FOREIGN: dict[str, Callable[[PreTrainedModel, Path], CachedTargets]] = {
    "another teacher": lambda teacher, folder: opened(teacher, folder, name="another teacher"),
    "another form": lambda t, folder: CachedTargets(t, TOKENS, Sampled(t), folder, "a teacher"),
    "another temperature": lambda t, folder: CachedTargets(t, TOKENS, Sampled(t, 2.0), folder, "a teacher"),
    "other draws": lambda t, folder: CachedTargets(t, TOKENS, Sampled(t, draws=9), folder, "a teacher"),
    "states": lambda t, folder: CachedTargets(
        t, TOKENS, Hidden(t), folder, "a teacher", [StatePlace(StateKind.EMBEDDING)]
    ),
}


def test_a_cache_of_something_else_is_made_anew(folder: Path, teacher: PreTrainedModel) -> None:
    for name, make in FOREIGN.items():
        assert filled(make(teacher, folder)) == BLOCKS, name
        assert filled(make(teacher, folder)) == 0
    assert filled(opened(teacher, folder)) == BLOCKS


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the records": lambda folder: flip(folder / "records.bin", 0.5),
    "the last bit of the records": lambda folder: flip(folder / "records.bin", 1),
    "a bit of the index": lambda folder: flip(folder / "index.bin", 0.4),
    "records cut short": lambda folder: os.truncate(folder / "records.bin", 700),
    "records empty": lambda folder: os.truncate(folder / "records.bin", 0),
    "records longer": lambda folder: (folder / "records.bin").open("ab").write(b"left over"),
    "index cut short": lambda folder: os.truncate(folder / "index.bin", 77),
    "index empty": lambda folder: os.truncate(folder / "index.bin", 0),
    "index longer": lambda folder: (folder / "index.bin").open("ab").write(b"left over" * 9),
    "records of zeros": lambda folder: (folder / "records.bin").write_bytes(bytes(5000)),
    "index of zeros": lambda folder: (folder / "index.bin").write_bytes(bytes(5000)),
    "no records": lambda folder: (folder / "records.bin").unlink(),
    "no index": lambda folder: (folder / "index.bin").unlink(),
    "no header": lambda folder: (folder / "header.json").unlink(),
    "header cut short": lambda folder: os.truncate(folder / "header.json", 9),
    "header not UTF-8": lambda folder: (folder / "header.json").write_bytes(b"\xff\xfe"),
    "header of something else": lambda folder: (folder / "header.json").write_text("[]"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("before", [True, False], ids=["before opening", "while open"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_gives_the_right_states(
    damage: Callable[[Path], object],
    before: bool,
    teacher: PreTrainedModel,
    folder: Path,
    right: dict[str, Tensor],
) -> None:
    if before:
        damage(folder)
    targets = opened(teacher, folder)
    targets.fill()
    if not before:
        damage(folder)
    assert torch.equal(targets.batch(ALL).targets[0], right["tokens"])
    again = opened(teacher, folder)
    again.fill()
    assert torch.equal(again.batch(ALL).targets[0], right["tokens"])


def test_a_record_that_changed_is_told_and_made_again_once(
    folder: Path, teacher: PreTrainedModel, right: dict[str, Tensor], told: Callable[[], list[str]]
) -> None:
    flip(folder / "records.bin", 0.5)
    targets = opened(teacher, folder)
    assert targets.missing() == [], "a payload is looked at when it is read"
    assert torch.equal(targets.batch(ALL).targets[0], right["tokens"])
    assert told() == [
        f"the teacher's targets of block 3 in {folder} are missing or not as they were written: made again"
    ]
    assert torch.equal(targets.batch(ALL).targets[0], right["tokens"])
    assert torch.equal(opened(teacher, folder).batch(ALL).targets[0], right["tokens"])


def test_an_entry_without_its_record_never_comes_to_point_at_anothers(
    folder: Path, teacher: PreTrainedModel, right: dict[str, Tensor], told: Callable[[], list[str]]
) -> None:
    """The last four records are gone, and then the first three are followed by other ones."""
    os.truncate(folder / "records.bin", 3 * (folder / "records.bin").stat().st_size // BLOCKS)
    short = opened(teacher, folder, TOKENS[:3])
    assert filled(short) == 0
    assert opened(teacher, folder).missing() == [3, 4, 5, 6]
    assert filled(opened(teacher, folder)) == 4
    assert torch.equal(opened(teacher, folder).batch(ALL).targets[0], right["tokens"])
    assert told() == []


class Dies(BaseException):
    """The process was killed."""


class Mortal:
    """Does what the system does until its steps are up, and dies in the middle of the next."""

    def __init__(self, steps: int) -> None:
        self.left, self.done = steps, 0

    def _step(self) -> None:
        self.left, self.done = self.left - 1, self.done + 1
        if self.left < 0:
            raise Dies

    def pwrite(self, descriptor: int, content: memoryview, offset: int) -> int:
        if self.left == 0:
            os.pwrite(descriptor, content[: len(content) // 2], offset)
        self._step()
        return os.pwrite(descriptor, content, offset)

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._step()
        os.ftruncate(descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        os.replace(source, target)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def die_in(monkeypatch: pytest.MonkeyPatch, steps: int) -> Mortal:
    mortal = Mortal(steps)
    monkeypatch.setattr(records_module, "os", mortal)
    return mortal


@pytest.mark.parametrize("steps", range(20))
def test_killed_at_any_step_the_whole_records_are_used_and_the_rest_made(
    steps: int,
    folder: Path,
    teacher: PreTrainedModel,
    right: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], list[str]],
) -> None:
    """Over a cache of another teacher: five steps until it is empty, then two writes a block."""
    with monkeypatch.context() as patched:
        mortal = die_in(patched, steps)
        killed = opened(teacher, folder, OTHERS, "another teacher")
        if steps < 5 + 2 * BLOCKS:
            with pytest.raises(Dies):
                killed.fill()
        else:
            killed.fill()
        assert mortal.done == min(steps + 1, 5 + 2 * BLOCKS)
    again = opened(teacher, folder, OTHERS, "another teacher")
    assert filled(again) == BLOCKS - max(0, (steps - 5) // 2)
    assert torch.equal(again.batch(ALL).targets[0], right["others"])
    assert told() == []


def fills_up(monkeypatch: pytest.MonkeyPatch, space: int) -> None:
    """A disk with so many bytes left, which takes a part of what does not fit, as a real one does."""

    class Full(Mortal):
        def pwrite(self, descriptor: int, content: memoryview, offset: int) -> int:
            nonlocal space
            if space == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            some = content[:space]
            space -= len(some)
            return os.pwrite(descriptor, some, offset)

    monkeypatch.setattr(records_module, "os", Full(10**9))


@pytest.mark.parametrize("records", [0, 0.01, 0.95, 1, 2.5])
def test_a_full_disk_loses_nothing_and_the_work_goes_on(
    records: float,
    teacher: PreTrainedModel,
    tmp_path: Path,
    right: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], list[str]],
) -> None:
    earlier = opened(teacher, tmp_path, TOKENS[:3])
    earlier.fill()
    one = (tmp_path / "records.bin").stat().st_size // 3 + 32
    with monkeypatch.context() as patched:
        fills_up(patched, int(records * one))
        with pytest.raises(OSError, match="No space left") as error:
            opened(teacher, tmp_path).fill()
    assert error.value.errno == errno.ENOSPC
    assert torch.equal(earlier.batch(torch.arange(3)).targets[0], right["tokens"][:3])
    again = opened(teacher, tmp_path)
    assert len(again.missing()) == 4 - int(records)
    again.fill()
    assert torch.equal(again.batch(ALL).targets[0], right["tokens"])
    assert told() == []


def test_two_at_once_make_each_block_once(tmp_path: Path, right: dict[str, Tensor]) -> None:
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def advance(blocks: int) -> None:
        made.append(blocks)
        begun.set()
        assert go_on.wait(30)

    both = [opened(tiny_model(), tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=targets.fill, args=(advance,)) for targets in both]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive(), "it waits"
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sum(made) == BLOCKS
    for targets in both:
        assert torch.equal(targets.batch(ALL).targets[0], right["tokens"])


def test_what_another_process_made_is_found(
    folder: Path, teacher: PreTrainedModel, told: Callable[[], list[str]]
) -> None:
    """A reader that never claimed the folder knows of no record."""
    reader = opened(teacher, folder, TOKENS)
    assert reader.batch(torch.tensor([6])).targets[0].shape == (1, 6, 16)
    assert told() == [], "it looks into the folder before it asks the teacher"


def test_a_record_of_another_size_finds_its_place(tmp_path: Path) -> None:
    tokens = torch.arange(6)
    records = Records(tmp_path, {})
    sizes = [4, 9, 2, 30, 7]
    with records.locked():
        for number in range(3):
            records.write(number, tokens, {"numbers": torch.full((8,), number)})
        for size in sizes:
            records.write(1, tokens, {"numbers": torch.arange(size)})
    again = Records(tmp_path, {})
    with again.locked():
        pass
    for number, wanted in enumerate([torch.full((8,), 0), torch.arange(7), torch.full((8,), 2)]):
        found = again.read(number, tokens)
        assert found is not None
        assert torch.equal(found["numbers"], wanted)
    assert again.read(1, tokens + 1) is None
    assert again.read(3, tokens) is None


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.uint8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_tensors_of_a_record_are_read_as_safetensors_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    """An odd number of bytes beside them moves nothing off its place."""
    record = {
        "a": torch.arange(5, dtype=torch.uint8),
        "b": torch.arange(6).to(dtype).view(2, 3),
        "c": torch.zeros(3, dtype=torch.int16),
    }
    records = Records(tmp_path, {})
    with records.locked():
        records.write(0, TOKENS[0], record)
    found = records.read(0, TOKENS[0])
    assert found is not None
    wanted = load((tmp_path / "records.bin").read_bytes())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
