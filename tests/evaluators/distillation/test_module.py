"""The loss of a batch against one computed token by token, block by block, from whole models' logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation import module as module_under_test
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.states import (
    StateDistance,
    StateKind,
    StatePair,
    StatePlace,
    States,
    StatesLoss,
    states_named,
)
from evaluators.distillation.targets.batch import PADDING, Batch, Count
from evaluators.distillation.targets.live import LiveTargets, TextTargets
from tests.evaluators.tiny_models import random_tokens, tiny_model, tiny_student

LOSSES = [
    "forward-kl",
    "reverse-kl",
    "jensen-shannon",
    "mse",
    "cosine",
    "cross-entropy",
    "0.3*forward-kl+cross-entropy",
]


def padded() -> Tensor:
    """(4, 6): two whole blocks, one that ends early, and one of a single token."""
    tokens = random_tokens(4, 6)
    tokens[2, 4:] = PADDING
    tokens[3, 1:] = PADDING
    return tokens


def slow_loss(loss: Loss, student: PreTrainedModel, teacher: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Token by token, each block alone and without what pads it."""
    everywhere, known = list[Tensor](), list[Tensor]()
    for row in tokens.tolist():
        block = [token for token in row if token != PADDING]
        mine = student(input_ids=torch.tensor([block])).logits[0].double()
        theirs = teacher(input_ids=torch.tensor([block])).logits[0].double()
        for place, (s, t) in enumerate(zip(mine, theirs, strict=True)):
            p, q = (t / loss.temperature).softmax(-1), (s / loss.temperature).softmax(-1)
            m, squared = (p + q) / 2, loss.temperature**2
            terms = {
                "forward-kl": squared * (p * (p / q).log()).sum(),
                "reverse-kl": squared * (q * (q / p).log()).sum(),
                "jensen-shannon": squared * (p * (p / m).log() + q * (q / m).log()).sum() / 2,
                "mse": (s - t).square().mean(),
                "cosine": 1 - (s @ t) / (s.norm() * t.norm()),
            }
            named = [weight * terms[term] for term, weight in loss.terms.items() if term in terms]
            everywhere.append(torch.stack([torch.zeros((), dtype=torch.float64), *named]).sum())
            if place + 1 < len(block):
                weight = {str(term): value for term, value in loss.terms.items()}.get("cross-entropy", 0.0)
                known.append(-weight * s.log_softmax(-1)[block[place + 1]])
    return torch.stack(everywhere).mean() + torch.stack(known).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("text", LOSSES)
def test_every_loss_is_that_of_a_slow_reference_with_its_gradient(
    monkeypatch: pytest.MonkeyPatch, text: str, temperature: float
) -> None:
    """Of blocks that are padded, in slices that cut across them, and in two micro-batches of a step."""
    monkeypatch.setattr(module_under_test, "token_slice", lambda vocabulary: 5)
    loss, tokens = Loss.parse(text, temperature), padded()
    teacher, student = tiny_model(seed=3), tiny_student(tie_word_embeddings=True)
    wanted = slow_loss(loss, student, teacher, tokens)
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = torch.autograd.grad(wanted, parameters)

    targets = LiveTargets(teacher, tokens)
    distillation, count = Distillation(student, targets, loss), Count.of(tokens)
    shares = [distillation(targets.batch(torch.tensor(part)), count)[0] for part in ([0, 2], [1, 3])]
    found = shares[0] + shares[1]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    for name, mine, theirs in zip(names, torch.autograd.grad(found, parameters), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    teacher, student = tiny_model(seed=3), tiny_student()
    targets, count = LiveTargets(teacher, padded()), Count.of(padded())
    batch = targets.batch(torch.arange(4))
    noisy = [torch.where(batch.mask[..., None], said, 9.0) for said in batch.targets]
    distillation = Distillation(student, targets, Loss.parse("forward-kl+cross-entropy"))
    values = [distillation(one, count)[0].item() for one in (batch, Batch(batch.tokens, tuple(noisy)))]
    assert values[0] == values[1]


def test_documents_end_to_end_predict_each_others_separator() -> None:
    """The causal shift: the token after each, across documents, but never across blocks."""
    batch = Batch(torch.tensor([[0, 5, 6, 0, 7, 8], [1, 2, 3, PADDING, PADDING, PADDING]]))
    none = PADDING
    assert batch.next_tokens.tolist() == [[5, 6, 0, 7, 8, none], [2, 3, none, none, none, none]]
    assert batch.mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert Count.of(batch.tokens) == Count(9, 7)


def test_text_alone_is_trained_on_without_a_teacher() -> None:
    student, tokens = tiny_student(), random_tokens(3, 6)
    targets = TextTargets(tokens, torch.device("cpu"))
    distillation = Distillation(student, targets, Loss.parse("cross-entropy"))
    loss, _ = distillation(targets.batch(torch.arange(3)), Count.of(tokens))
    wanted = student(input_ids=tokens.long(), labels=tokens.long()).loss
    torch.testing.assert_close(loss, wanted)


# Intermediate states


def states_by_hand(model: PreTrainedModel, tokens: Tensor, place: StatePlace) -> Tensor:
    """From what the class itself returns: states around the blocks, and attentions."""
    if place.kind is StateKind.ATTENTION:
        found = list[Tensor]()
        attention = model.get_submodule(f"model.layers.{place.layer}.self_attn")
        hook = attention.register_forward_hook(lambda _, __, output: found.append(output[0]))
        model(input_ids=tokens)
        hook.remove()
        return found[0]
    between = model(input_ids=tokens, output_hidden_states=True).hidden_states
    states: Tensor = between[0 if place.kind is StateKind.EMBEDDING else place.layer + 1]
    return states


@pytest.mark.parametrize("by", StateDistance)
@pytest.mark.parametrize(
    "names", [("late",), ("embedding",), ("attention",), ("late", "embedding", "attention")]
)
def test_the_loss_on_states_is_that_of_a_slow_reference(names: tuple[str, ...], by: StateDistance) -> None:
    teacher, student = tiny_model(seed=3, num_hidden_layers=6), tiny_student(num_hidden_layers=4)
    tokens = padded()
    found = states_named(names, 4, 6)
    assert found is not None
    states = States(found.pairs, by)
    assert {pair.teacher.layer for pair in states.pairs} <= {0, 3}
    assert {pair.student.layer for pair in states.pairs} <= {0, 1}
    loss = StatesLoss(states, 8, 16)
    torch.manual_seed(0)
    for one in loss.maps:
        nn.init.normal_(one.get_parameter("weight"))
    targets = LiveTargets(teacher, tokens, states.of_teacher)
    distillation = Distillation(student, targets, Loss(), loss)
    total, apart = distillation(targets.batch(torch.arange(4)), Count.of(tokens))

    terms = list[float]()
    for pair, one in zip(states.pairs, loss.maps, strict=True):
        for row in tokens.tolist():
            block = torch.tensor([[token for token in row if token != PADDING]])
            mine = one(states_by_hand(student, block, pair.student))[0].detach()
            theirs = states_by_hand(teacher, block, pair.teacher)[0].detach()
            for s, t in zip(mine, theirs, strict=True):
                cosine = 1 - float(s @ t) / float(s.norm() * t.norm())
                squared = float((s - t).square().sum() / t.square().sum())
                terms.append(cosine if by is StateDistance.COSINE else squared)
    wanted = sum(terms) / len(terms)
    assert apart.item() == pytest.approx(wanted, rel=1e-4)
    logits = Distillation(student, targets, Loss())(targets.batch(torch.arange(4)), Count.of(tokens))[0]
    assert total.item() == pytest.approx(logits.item() + wanted, rel=1e-4)
    distillation.alpha.fill_(7.0)
    weighted = distillation(targets.batch(torch.arange(4)), Count.of(tokens))[0]
    assert weighted.item() == pytest.approx(logits.item() + 7 * wanted, rel=1e-4)
    assert not apart.requires_grad


def test_gradients_of_the_states_reach_what_lies_below_and_the_maps() -> None:
    teacher, student = tiny_model(seed=3, num_hidden_layers=6), tiny_student(num_hidden_layers=4)
    states = States((StatePair(StatePlace(StateKind.BLOCK, 1), StatePlace(StateKind.BLOCK, 3)),))
    loss, tokens = StatesLoss(states, 8, 16), random_tokens(2, 6)
    targets = LiveTargets(teacher, tokens, states.of_teacher)
    batch = targets.batch(torch.arange(2))
    distillation = Distillation(student, targets, Loss(), loss)
    plain = Distillation(student, targets, Loss())
    moved = dict[str, bool]()
    for name, parameter in student.named_parameters():
        grads = [
            torch.autograd.grad(one(batch, Count.of(tokens))[0], parameter)[0]
            for one in (distillation, plain)
        ]
        moved[name] = not torch.allclose(grads[0], grads[1], rtol=1e-6, atol=1e-9)
    assert moved["model.layers.1.mlp.up_proj.weight"]
    assert moved["model.embed_tokens.weight"]
    assert not moved["model.layers.2.mlp.up_proj.weight"]
    assert not moved["lm_head.weight"]
    gradient = torch.autograd.grad(distillation(batch, Count.of(tokens))[0], list(loss.parameters()))
    assert all(float(one.abs().max()) > 0 for one in gradient)


def test_maps_begin_by_handing_on_what_both_have() -> None:
    loss = StatesLoss(
        States((StatePair(StatePlace(StateKind.EMBEDDING), StatePlace(StateKind.EMBEDDING)),)), 3, 5
    )
    state = torch.tensor([[[1.0, 2.0, 3.0]]])
    same = {"embedding": torch.tensor([[[1.0, 2.0, 3.0, 0.0, 0.0]]])}
    assert loss({"embedding": state}, same, torch.tensor([[True]])).item() == pytest.approx(0, abs=1e-6)
