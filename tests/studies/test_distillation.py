"""The study of distillation: its few next tokens, its rates, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.distillation.losses import Loss
from evaluators.distillation.targets.batch import Sparse
from evaluators.distillation.targets.live import LiveTargets
from studies.bench.results import Results
from studies.distillation import __main__ as study
from studies.distillation import work
from studies.distillation.sparse import BYTES_OF_DRAWN, Few, drawn_bytes
from studies.distillation.variants import REFERENCES, SEEDS, STEPS, VARIANTS, Variant
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model

TARGETS = LiveTargets(tiny_model(seed=3), random_tokens(4, 6))
NUMBERS = torch.tensor([2, 0])


def said(few: Few) -> Sparse:
    return few.predictions(*(part.flatten(0, 1) for part in few.batch(NUMBERS).targets))


def shares() -> torch.Tensor:
    """(12, V) the teacher's distributions at the tokens of ``NUMBERS``."""
    with torch.no_grad():
        logits: torch.Tensor = TARGETS.teacher(input_ids=TARGETS.tokens[NUMBERS].long()).logits
    return logits.softmax(-1).flatten(0, 1)


def test_drawn_tokens_follow_the_teachers_distribution_and_are_always_the_same() -> None:
    draws = 4000
    answer = said(Few(TARGETS, draws=draws))
    drawn = torch.zeros(12, VOCABULARY).scatter_add_(1, answer.ids, answer.weights)
    # Five standard deviations of a share of so many draws.
    bound = 5 * (shares() * (1 - shares()) / draws).sqrt() + 1e-9
    assert bool(((drawn - shares()).abs() <= bound).all())
    assert torch.equal(answer.ids, said(Few(TARGETS, draws=draws)).ids)
    torch.testing.assert_close(answer.entropy, torch.special.entr(shares()).sum(-1))


def test_the_largest_few_are_renormalised() -> None:
    answer = said(Few(TARGETS, largest=3))
    for row, (ids, weights) in enumerate(zip(answer.ids, answer.weights, strict=True)):
        order = shares()[row].argsort(descending=True)[:3]
        assert ids.tolist() == order.tolist()
        torch.testing.assert_close(weights, shares()[row][order] / shares()[row][order].sum())
    assert bool((answer.entropy < torch.special.entr(shares()).sum(-1)).all())


def test_the_bytes_of_draws_count_distinct_tokens() -> None:
    assert drawn_bytes(TARGETS, 1) == BYTES_OF_DRAWN
    ids = [Few(TARGETS, draws=20).batch(torch.arange(4)).targets[0].flatten(0, 1)]
    distinct = [len(set(row)) for row in ids[0].tolist()]
    assert drawn_bytes(TARGETS, 20) == pytest.approx(BYTES_OF_DRAWN * sum(distinct) / len(distinct), rel=1e-6)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    results = Results(tmp_path / "results.jsonl", work.RESULTS.key)
    monkeypatch.setattr(work, "RESULTS", results)
    monkeypatch.setattr(study, "RESULTS", results)
    return results


def row(variant: Variant, rate: float, seed: int, after: float) -> dict[str, Any]:
    return {**work.described("embedded", variant, rate, seed), "after": after, "steps": STEPS}


def test_the_first_seed_chooses_the_rate_for_the_others(results: Results) -> None:
    kl = next(v for v in VARIANTS if v.name == "pruned, distilled")
    text = next(v for v in VARIANTS if v.name == "pruned, cross-entropy")
    dear = next(v for v in VARIANTS if v.name == "pruned, cross-entropy, equal FLOPs")
    for rate, after in ((0.5, 3.0), (1.0, 2.5), (2.0, 2.75)):
        results.add(row(kl, rate, 0, after))
        results.add(row(text, rate, 0, 6 - after))
    assert list(work.rates_of("embedded", kl, 0)) == [0.5, 1.0, 2.0]
    assert list(work.rates_of("embedded", kl, 1)) == [1.0]
    assert list(work.rates_of("embedded", dear, 0)) == list(work.rates_of("embedded", dear, 2)) == [0.5]
    assert list(work.rates_of("stories260K", kl, 1)) == [0.5]


def test_while_the_highest_rate_is_best_a_higher_one_is_tried(results: Results) -> None:
    kl, seen = next(v for v in VARIANTS if v.name == "forward-kl"), list[float]()
    for rate in work.rates_of("embedded", kl, 0):
        seen.append(rate)
        results.add(row(kl, rate, 0, abs(rate - 4)))
    assert seen == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert list(work.rates_of("embedded", kl, 1)) == [4.0]


def test_a_training_is_not_repeated_for_a_second_study(results: Results) -> None:
    kl = next(v for v in VARIANTS if (v.study, v.name) == ("loss", "forward-kl"))
    alike = [v for v in VARIANTS if work.twin(row(v, 1.0, 0, 0), v) is None]
    assert alike == list(VARIANTS)
    results.add(row(kl, 1.0, 0, 2.5))
    found = {(v.study, v.name) for v in VARIANTS if work.twin(work.described("embedded", v, 1.0, 0), v)}
    assert found == {
        ("loss", "forward-kl"),
        ("states, width", "logits"),
        ("start", "pruned, distilled"),
        ("temperature", "τ = 1"),
        ("few", "every logit"),
    }


def test_a_table_compares_at_the_best_rate_and_stands_beside_the_papers(results: Results) -> None:
    for seed in SEEDS:
        for name, base in (("forward-kl", 2.0), ("mse", 3.0), ("cross-entropy+mse", 2.5)):
            variant = next(v for v in VARIANTS if (v.study, v.name) == ("loss", name))
            for rate in variant.rates if seed == 0 else (2.0,):
                results.add(row(variant, rate, seed, base + seed / 10 - rate / 100))
    lines = study.tables().splitlines()
    assert "## loss, embedded" in lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0] == ["", "rate", "steps", "loss", "effect", "paper"]
    assert rows[1] == ["forward-kl", "2", "48", "2.080 ± 0.100", "", "2.107"]
    assert rows[2] == ["cross-entropy+mse", "2", "48", "2.580 ± 0.100", "0.500 ± 0.000", "2.144"]
    assert rows[3] == ["mse", "2", "48", "3.080 ± 0.100", "1.000 ± 0.000", ""]


def test_every_variant_can_be_read() -> None:
    assert len({(v.study, v.name) for v in VARIANTS}) == len(VARIANTS)
    for variant in VARIANTS:
        Loss.parse(variant.loss, variant.temperature)
        assert variant.study in REFERENCES
    for name, reference in REFERENCES.items():
        assert any((v.study, v.name) == (name, reference) for v in VARIANTS)
