"""Every storage a user can name holds studies; one that cannot is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection

from search.settings.objectives import UNITS
from search.storage.storage import open_storage, open_study
from space.input_error import InputError

OBJECTIVES = ("loss", "latency")
MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
SPACE = "69 architectures within 1,000,000 ±2%"


def studies(text: str, folder: Path) -> list[str]:
    """The names of the studies in a storage that is opened anew."""
    return [study.study_name for study in open_storage(text, folder).get_all_studies()]


def test_a_journal_in_the_run_directory_is_the_default(tmp_path: Path) -> None:
    storage = open_storage("", tmp_path)
    assert isinstance(storage, JournalStorage)
    open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"], "the lock is no file"
    assert studies(str(tmp_path / "study.journal"), Path("elsewhere")) == ["name/r0"]


def test_sqlite_is_a_url(quick_disk: Path) -> None:
    url = f"sqlite:///{quick_disk}/a.journal"
    storage = open_storage(url, Path("elsewhere"))
    assert isinstance(storage, RDBStorage)
    open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)
    assert [path.name for path in quick_disk.iterdir()] == ["a.journal"]
    assert studies(url, Path("elsewhere")) == ["name/r0"]


@pytest.mark.parametrize("name", ["60%", "a?b", "a%20b", "a b", "a#b", "ü", "it's", "a:b@c", "{a}"])
def test_a_run_directory_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    open_study(open_storage("", folder), "name/r0", OBJECTIVES, UNITS, SPACE)
    assert [path.name for path in folder.iterdir()] == ["study.journal"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert studies("", folder) == ["name/r0"]


@pytest.mark.parametrize(
    "text",
    [
        "somewhere",
        "study.db",
        "redis://host",
        "postgresql://user@127.0.0.1:1/name",
        "sqlite:////nowhere/at/all/study.db",
        "nowhere/at/all/shared.journal",
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_it_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_storage(text, tmp_path)
    assert caught.value.rule == "The Optuna storage has to be reachable"
    assert caught.value.values.startswith(f"{text} answered: ")
    assert "\n" not in str(caught.value)
    assert ".." not in str(caught.value)
    assert caught.value.remedy.startswith("Check --storage, for example postgresql://user@host/name")
    assert caught.value.__suppress_context__
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    folder = tmp_path / "folder.journal"
    folder.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        open_storage(str(folder), tmp_path)


def test_a_study_is_named_in_units_and_loaded_again() -> None:
    storage = InMemoryStorage()
    first = open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)
    assert first.metric_names == ["loss (nats per token)", "latency (ms)"]
    assert [direction.name for direction in first.directions] == ["MINIMIZE", "MINIMIZE"]
    first.tell(first.ask(), [1.0, 2.0])
    assert len(open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE).trials) == 1


@pytest.mark.parametrize(
    ("objectives", "asked"),
    [(("loss",), "loss"), (("loss", "memory"), "loss, memory"), (("latency", "loss"), "latency, loss")],
)
def test_other_objectives_are_refused(objectives: tuple[str, ...], asked: str) -> None:
    storage = InMemoryStorage()
    open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)
    with pytest.raises(InputError) as caught:
        open_study(storage, "name/r0", objectives, UNITS, SPACE)
    assert str(caught.value) == (
        f"A study keeps its objectives; name/r0 has loss (nats per token), latency (ms), and {asked} was "
        "asked. Take another --study-name."
    )


def test_another_search_space_is_refused() -> None:
    storage = InMemoryStorage()
    study = open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)
    assert study.user_attrs == {"space": SPACE}
    with pytest.raises(InputError) as caught:
        open_study(storage, "name/r0", OBJECTIVES, UNITS, "9 architectures within 800,000 ±2%")
    assert str(caught.value) == (
        "A study keeps its search space; name/r0 was begun with 69 architectures within 1,000,000 ±2%, and "
        "9 architectures within 800,000 ±2% was asked. Take another --study-name."
    )


@pytest.mark.parametrize("directions", [[MAXIMIZE, MINIMIZE], [MINIMIZE]])
def test_a_foreign_study_is_refused(directions: list[StudyDirection]) -> None:
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name="name/r0", directions=directions)
    with pytest.raises(InputError, match=f"name/r0 has {len(directions)} that are not named, and loss"):
        open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE)


def test_a_study_that_was_created_and_not_yet_named_is_taken_up() -> None:
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name="name/r0", directions=[MINIMIZE, MINIMIZE])
    assert open_study(storage, "name/r0", OBJECTIVES, UNITS, SPACE).metric_names is not None


def test_a_password_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_storage("postgresql://user:secret@127.0.0.1:9/name", tmp_path)
    assert "secret" not in str(caught.value)
    assert "user:***@127.0.0.1:9/name answered" in str(caught.value)
