"""``python -m search.vocabulary``: the table of sizes, the teacher that it writes, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from search.vocabulary import main

DEMO = Path(__file__).parents[2] / "studies" / "demo" / "teacher"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of many tokens, more of them in use than half of a vocabulary holds."""
    path, lots = tmp_path_factory.mktemp("text") / "stories.txt", random.Random(0)
    words = ["".join(lots.choices("aeioudklmnrst", k=lots.randint(2, 9))) for _ in range(2000)]
    path.write_text("\n\n".join(" ".join(lots.choices(words, k=60)) + "." for _ in range(400)))
    return path


def flags(stories: Path, *more: str) -> list[str]:
    return ["--model", str(DEMO), "--data", str(stories), "--tokens", "4k", "--device", "cpu", "-q", *more]


@pytest.fixture(scope="module")
def written(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher with 512 of its 1,024 tokens."""
    path = tmp_path_factory.mktemp("smaller") / "teacher"
    assert main(flags(stories, "--size", "50%", "--out", str(path))) == 0
    return path


def test_the_table_has_the_halves_down_to_the_bytes(stories: Path, capsys: Capture) -> None:
    assert main(flags(stories, "--json")) == 0
    whole, half = json.loads(capsys.readouterr().out)
    assert (whole["tokens"], half["tokens"]) == (1024, 512), "257 tokens always stay"
    width = json.loads((DEMO / "config.json").read_text())["hidden_size"]
    gone = whole["parameters"] - half["parameters"]
    assert gone in (512 * width, 2 * 512 * width)
    assert whole["mass"] == pytest.approx(1)
    assert 0 < half["mass"] < 1
    assert half["tokens_per_byte"] > whole["tokens_per_byte"], "what is split further has more tokens"
    assert half["bits_per_byte"] != whole["bits_per_byte"]


def test_what_is_written_loads_and_agrees_with_the_teacher(written: Path) -> None:
    teacher, student = map(AutoModelForCausalLM.from_pretrained, (DEMO, written))
    before, after = map(AutoTokenizer.from_pretrained, (DEMO, written))
    assert len(after) == student.config.vocab_size == 512
    ids = torch.tensor([after.encode("def first(values): return values[0]")])
    kept = before.convert_tokens_to_ids(after.convert_ids_to_tokens(list(range(512))))
    with torch.no_grad():
        whole = teacher(torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(student(ids).logits, whole, rtol=1e-4, atol=1e-4)
    assert (written / "README.md").read_text().startswith("---\n")
    assert student.generation_config.eos_token_id == after.eos_token_id


def test_it_writes_text_as_any_model(written: Path) -> None:
    generator = pipeline("text-generation", model=str(written), device="cpu")
    found = generator("def first(", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert found.startswith("def first(")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "50%"], "one of --size and --out was given without the other"),
        (["--size", "100", "--out", "new"], "100 were asked of a tokenizer that has 1,024, of which 257"),
        (["--size", "many", "--out", "new"], "'many' is neither"),
        (["--size", "50%", "--out", "."], "Nothing that is there is written over"),
        (["--tokens", "no"], "--tokens"),
    ],
)
def test_bad_input_is_refused(stories: Path, more: list[str], message: str, capsys: Capture) -> None:
    assert main(flags(stories, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_inside_it_is_one_as_any_other(written: Path, stories: Path, tmp_path: Path) -> None:
    from search import run

    words = (
        f"--model {written} --data {stories} --budget 60% --preset studies/presets/quick.toml --device cpu"
    )
    assert run.main([*words.split(), "--out", str(tmp_path), "--study-name", "small"]) == 0
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    student = tmp_path / "small" / summary["promoted"][0]["path"]
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(student)
    assert len(tokenizer) == 512
