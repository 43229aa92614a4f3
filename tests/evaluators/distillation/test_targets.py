"""Every form of targets against the live teacher; the statistics of drawn ones are tested apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.states import StateKind, StatePlace, states_at
from evaluators.distillation.targets.batch import PADDING, Batch, Count, Dense, Form, Sparse, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, LiveTargets, TextTargets
from evaluators.distillation.targets.sparse import Sampled, TopK, pack_ids, unpack_ids
from evaluators.huggingface.final_states import final_states, logits_of
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model, tiny_student

TOKENS = random_tokens(7, 6)
FORMS: dict[str, Callable[[PreTrainedModel], Form]] = {
    "hidden": Hidden,
    "sampled": lambda teacher: Sampled(teacher, 1.5, draws=200),
    "top-k": lambda teacher: TopK(teacher, 1.5, k=5),
}


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model()


def cached(teacher: PreTrainedModel, form: Form, folder: Path, tokens: Tensor = TOKENS) -> CachedTargets:
    targets = CachedTargets(teacher, tokens, form, folder, "a teacher")
    targets.fill()
    return targets


def divergence(student: PreTrainedModel, targets: Targets, loss: Loss | None = None) -> float:
    module, batch = Distillation(student, targets, loss or Loss()), targets.batch(torch.arange(7))
    with torch.no_grad():
        return float(module(batch, Count.of(batch.tokens))[0])


def test_hidden_targets_are_the_live_ones_rounded(teacher: PreTrainedModel, tmp_path: Path) -> None:
    live, kept = LiveTargets(teacher, TOKENS), cached(teacher, Hidden(teacher), tmp_path)
    assert (live.blocks, kept.blocks) == (7, 7)
    for numbers in ([0, 1, 2, 3, 4, 5, 6], [6, 0, 3], [2, 2]):
        wanted, batch = live.batch(torch.tensor(numbers)), kept.batch(torch.tensor(numbers))
        assert torch.equal(batch.tokens, TOKENS[numbers].long())
        assert torch.equal(batch.tokens, wanted.tokens)
        (final,) = batch.targets
        assert final.dtype == torch.bfloat16
        # bfloat16 has 8 significant bits: rounding moves a value by at most 2⁻⁸ of itself.
        torch.testing.assert_close(final.float(), wanted.targets[0], rtol=2**-8, atol=1e-6)


def test_the_divergence_is_hardly_moved_by_the_rounding(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """The error of a logit is a sum of independent roundings; that of a distribution is second order."""
    student = tiny_student()
    live = divergence(student, LiveTargets(teacher, TOKENS))
    rounded = divergence(student, cached(teacher, Hidden(teacher), tmp_path))
    assert live == pytest.approx(rounded, rel=0.005)
    assert live != rounded


def test_a_bfloat16_teacher_is_kept_exactly(tmp_path: Path) -> None:
    teacher = tiny_model().bfloat16()
    (final,) = cached(teacher, Hidden(teacher), tmp_path).batch(torch.arange(7)).targets
    assert torch.equal(final, LiveTargets(teacher, TOKENS).batch(torch.arange(7)).targets[0])


def test_the_head_reads_rounded_states_in_its_own_precision(teacher: PreTrainedModel, tmp_path: Path) -> None:
    kept = cached(teacher, Hidden(teacher), tmp_path)
    final = kept.batch(torch.arange(7)).targets[0].flatten(0, 1)
    answer = kept.predictions(final)
    assert isinstance(answer, Dense)
    wanted = final.float() @ teacher.get_parameter("lm_head.weight").T.detach()
    torch.testing.assert_close(answer.logits, wanted)


def test_states_of_a_head_that_reads_fewer_numbers_than_hidden(tmp_path: Path) -> None:
    """OPT projects its last states down before the head."""
    teacher = tiny_model("opt", word_embed_proj_dim=12, ffn_dim=24)
    batch = cached(teacher, Hidden(teacher), tmp_path).batch(torch.arange(7))
    wanted = final_states(teacher, batch.tokens)
    assert wanted.shape[-1] == 12
    torch.testing.assert_close(batch.targets[0].float(), wanted, rtol=2**-8, atol=1e-6)


@torch.no_grad()
def shares(teacher: PreTrainedModel, temperature: float = 1.0) -> Tensor:
    """(7 × 6, V) the teacher's distributions, by its own code."""
    logits: Tensor = teacher(input_ids=TOKENS.long()).logits
    return (logits / temperature).double().softmax(-1).flatten(0, 1)


def said_of(targets: Targets) -> tuple[Batch, Sparse]:
    batch = targets.batch(torch.arange(7))
    answer = targets.predictions(*(part.flatten(0, 1) for part in batch.targets))
    assert isinstance(answer, Sparse)
    return batch, answer


def test_drawn_targets_are_counts_with_the_teachers_entropy(teacher: PreTrainedModel, tmp_path: Path) -> None:
    _, answer = said_of(cached(teacher, Sampled(teacher, 1.5, draws=200), tmp_path))
    torch.testing.assert_close(answer.weights.sum(-1), torch.ones(42))
    counts = answer.weights * 200
    assert (counts - counts.round()).abs().max() < 1e-4
    wanted = shares(teacher, 1.5)
    torch.testing.assert_close(answer.entropy, torch.special.entr(wanted).sum(-1).float())
    rebuilt = torch.zeros(42, VOCABULARY).scatter_add(-1, answer.ids, answer.weights)
    # A share of 200 draws lies within five standard deviations: 5 √(p (1 − p) / 200).
    assert ((rebuilt - wanted).abs() <= 5 * (wanted * (1 - wanted) / 200).sqrt() + 1 / 200).all()
    assert (counts.round() == 0).any(), "rows are filled up to the longest"


def test_the_most_probable_targets_are_renormalised(teacher: PreTrainedModel, tmp_path: Path) -> None:
    _, answer = said_of(cached(teacher, TopK(teacher, 1.5, k=5), tmp_path))
    top = shares(teacher, 1.5).topk(5)
    assert torch.equal(answer.ids, top.indices)
    wanted = top.values / top.values.sum(-1, keepdim=True)
    torch.testing.assert_close(answer.weights, wanted.float(), rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(answer.weights.sum(-1), torch.ones(42))
    torch.testing.assert_close(answer.entropy, torch.special.entr(answer.weights).sum(-1))


def test_a_loss_on_the_most_probable_is_a_divergence_from_them(
    teacher: PreTrainedModel, tmp_path: Path
) -> None:
    student = tiny_student()
    kept = cached(teacher, TopK(teacher, 1.0, k=5), tmp_path)
    _, answer = said_of(kept)
    with torch.no_grad():
        mine = student(input_ids=TOKENS.long()).logits.flatten(0, 1).log_softmax(-1)
    wanted = (answer.weights * (answer.weights.log() - mine.gather(-1, answer.ids))).sum(-1).mean()
    assert divergence(student, kept) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_lies_on_the_disk_and_is_read_alike_in_any_order(
    form: Callable[[PreTrainedModel], Form], teacher: PreTrainedModel, tmp_path: Path
) -> None:
    kept = cached(teacher, form(teacher), tmp_path)
    whole = kept.batch(torch.arange(7))
    again = CachedTargets(teacher, TOKENS, form(teacher), tmp_path, "a teacher")
    assert again.missing() == []
    some = again.batch(torch.tensor([5, 2]))
    for all_of_it, part in zip(whole.targets, some.targets, strict=True):
        width = part.shape[2:]
        narrowed = all_of_it[[5, 2]]
        assert torch.equal(narrowed[..., : width[0]] if width else narrowed, part)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_padding_is_kept_and_left_out_of_the_loss(
    form: Callable[[PreTrainedModel], Form], teacher: PreTrainedModel, tmp_path: Path
) -> None:
    short = TOKENS.clone()
    short[3, 4:] = PADDING
    kept, student = cached(teacher, form(teacher), tmp_path, short), tiny_student()
    batch = kept.batch(torch.tensor([3]))
    assert batch.mask.tolist() == [[True] * 4 + [False] * 2]
    alone = cached(teacher, form(teacher), tmp_path / "alone", TOKENS[:4])  # block 3 has the same draws
    loss = Loss(temperature=1.5)
    with torch.no_grad():
        padded = Distillation(student, kept, loss)(batch, Count.of(batch.tokens))[0]
        whole = alone.batch(torch.tensor([3]))
        cut = Batch(whole.tokens[:, :4], tuple(part[:, :4] for part in whole.targets))
        wanted = Distillation(student, alone, loss)(cut, Count.of(cut.tokens))[0]
    assert float(padded) == pytest.approx(float(wanted), rel=1e-5)


def test_intermediate_states_are_the_live_ones_rounded(teacher: PreTrainedModel, tmp_path: Path) -> None:
    places = [
        StatePlace(StateKind.EMBEDDING),
        StatePlace(StateKind.BLOCK, 1),
        StatePlace(StateKind.ATTENTION, 2),
    ]
    kept = CachedTargets(teacher, TOKENS, Hidden(teacher), tmp_path, "a teacher", places)
    kept.fill()
    batch, live = kept.batch(torch.tensor([4, 1])), LiveTargets(teacher, TOKENS, places)
    wanted = live.batch(torch.tensor([4, 1])).states
    assert list(batch.states) == list(wanted) == ["embedding", "block-1", "attention-2"]
    for name, state in wanted.items():
        assert state.shape == (2, 6, 16)
        torch.testing.assert_close(batch.states[name].float(), state, rtol=2**-8, atol=1e-6)
    with torch.no_grad(), states_at(teacher, places) as mine:
        final_states(teacher, TOKENS[[4, 1]].long())
    assert torch.equal(mine["block-1"], wanted["block-1"])
    assert CachedTargets(teacher, TOKENS, Hidden(teacher), tmp_path, "a teacher").missing() == [*range(7)]


def test_text_alone_asks_nobody() -> None:
    targets = TextTargets(TOKENS, torch.device("cpu"))
    batch = targets.batch(torch.tensor([2, 0]))
    assert torch.equal(batch.tokens, TOKENS[[2, 0]].long())
    assert (targets.blocks, batch.targets, batch.states) == (7, (), {})
    targets.predictions()
    loss = divergence(tiny_student(), targets, Loss.parse("cross-entropy"))
    with torch.no_grad():
        own = tiny_student()(input_ids=TOKENS.long(), labels=TOKENS.long()).loss
    assert loss == pytest.approx(float(own), rel=1e-5)


def test_targets_carry_no_gradient(teacher: PreTrainedModel, tmp_path: Path) -> None:
    for source in (LiveTargets(teacher, TOKENS), cached(teacher, Hidden(teacher), tmp_path)):
        (final,) = source.batch(torch.tensor([0])).targets
        answer = source.predictions(final[0])
        assert isinstance(answer, Dense)
        assert not final.requires_grad
        assert not answer.logits.requires_grad


def test_logits_of_a_large_vocabulary_are_made_slice_by_slice(
    teacher: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: cached(teacher, form(teacher), tmp_path / name) for name, form in FORMS.items()}
    asked: list[int] = []

    def watched(model: PreTrainedModel, states: Tensor) -> Tensor:
        asked.append(len(states))
        return logits_of(model, states)

    monkeypatch.setattr("evaluators.distillation.targets.sparse.token_slice", lambda vocabulary: 4)
    monkeypatch.setattr("evaluators.distillation.targets.sparse.logits_of", watched)
    for name, form in FORMS.items():
        sliced = cached(teacher, form(teacher), tmp_path / f"{name} sliced").batch(torch.arange(7))
        for one, other in zip(whole[name].batch(torch.arange(7)).targets, sliced.targets, strict=True):
            torch.testing.assert_close(one, other)
    assert set(asked) == {4, 2}, "blocks of six"


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(37, 2), (65_536, 2), (65_537, 4), (256_000, 4)])
def test_token_numbers_take_two_bytes_where_they_can(vocabulary: int, itemsize: int) -> None:
    ids = torch.tensor([0, 1, 32_767, 32_768, 65_535, 65_536, 255_999])
    ids = ids[ids < vocabulary]
    assert pack_ids(ids, vocabulary).itemsize == itemsize
    assert torch.equal(unpack_ids(pack_ids(ids, vocabulary)), ids)
