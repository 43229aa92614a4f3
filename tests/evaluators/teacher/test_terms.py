"""What a model's card says of its terms, as authors write such cards; what cannot be read states nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.teacher.writing import Terms, licence_files, read_terms


def card(folder: Path, front: str) -> Path:
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("front", "wanted"),
    [
        ("license: apache-2.0\nlanguage:\n- en\n- de", Terms(licence="apache-2.0", language=["en", "de"])),
        ("license: llama3.1\nlanguage: en", Terms(licence="llama3.1", language="en")),
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE",
            Terms("other", "qwen-research", "https://example.org/LICENSE"),
        ),
        ("license:\n- mit\n- apache-2.0", Terms(licence=["mit", "apache-2.0"])),
        ("base_model: org/base\ntags: [a, b]", Terms(base_model="org/base", tags=["a", "b"])),
        ("pipeline_tag: text-generation", Terms()),
        ("license: 7\nlanguage: [no]\ntags: one", Terms()),
    ],
)
def test_the_front_matter_is_read_as_authors_write_it(front: str, wanted: Terms, tmp_path: Path) -> None:
    assert read_terms(card(tmp_path, front)) == wanted


def test_without_a_card_nothing_is_stated(tmp_path: Path) -> None:
    assert read_terms(tmp_path) == Terms()
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert read_terms(tmp_path) == Terms()


@pytest.mark.parametrize("front", ["license: [", "- a list", "just text"])
def test_a_card_that_cannot_be_read_states_nothing_and_is_told(
    front: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_terms(card(tmp_path, front)) == Terms()
    assert "states no licence that can be read" in caplog.text


def test_files_of_the_licence_are_found_by_their_names(tmp_path: Path) -> None:
    wanted = ["LICENSE", "LICENSE.md", "NOTICE.txt", "USE_POLICY.md", "license.txt"]
    for name in (*wanted, "config.json", "README.md", "model.safetensors", "unlicensed.txt"):
        (tmp_path / name).touch()
    (tmp_path / "LICENSES").mkdir()
    assert [file.name for file in licence_files(tmp_path)] == sorted(wanted)
