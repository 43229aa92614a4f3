"""A decoder in two halves: the final hidden states, and the head that turns them into logits.

Losses work on slices of tokens, so they apply the head themselves; the logits of a whole batch
never exist at once. What a head is only its class knows: a matrix, with a bias in Phi, with a cap on
the logits in Gemma 2, a scale in Cohere, a divisor in Granite and MiniCPM. So the class's own code
runs, on states that are handed to it in place of those of its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from space.input_error import InputError


@contextmanager
def replaced_forward(
    modules: Sequence[nn.Module], by: Callable[[Callable[..., object]], Callable[..., object]]
) -> Iterator[None]:
    """Within the context the forward functions of modules are what ``by`` makes of them."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = by(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


#: Logits held at once by a loss: 2^24 float32 values are 64 MB.
_LOGITS_AT_ONCE = 2**24


def decoder(model: PreTrainedModel) -> nn.Module:
    """The half below the head: that part of the model which holds the input embeddings."""
    return _around_embeddings(model)[0]


def _around_embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """The modules within the model that hold its input embeddings, outermost first."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]


def final_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, D) the states that the head reads, after the final norm.

    Args:
        model: a causal language model.
        tokens: (B, T) token numbers.
    """
    output = decoder(model)(input_ids=tokens, use_cache=False)
    return cast(Tensor, output.last_hidden_state)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """(n, V) what the model makes of its final states, by its own code; gradients reach head and states.

    Args:
        model: a causal language model that passes ``check_head``.
        states: (n, D) of any tokens, from ``final_states``.
    """
    tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with _decoder_answers(model, _Answer(last_hidden_state=cast(Any, states[None]))):
        return cast(Tensor, model(input_ids=tokens, use_cache=False).logits[0])


def head_dtype(model: PreTrainedModel) -> torch.dtype:
    """Of the head's weights, in which it reads states that were stored in fewer bits."""
    dtype: torch.dtype = model.get_output_embeddings().weight.dtype
    return dtype


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """All that logits depend on besides the final states; a tied embedding is among them."""
    below = {id(parameter) for parameter in decoder(model).parameters()}
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    return [p for p in model.parameters() if id(p) in head or id(p) not in below]


def states_width(model: PreTrainedModel) -> int:
    """D, how many numbers of a token the head reads; in OPT they may be fewer than hidden."""
    return int(model.get_output_embeddings().weight.shape[1])


def vocabulary_size(model: PreTrainedModel) -> int:
    """V, the logits of one token."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def token_slice(vocabulary: int) -> int:
    """How many tokens' logits a loss may hold at once."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)


class _Answer(BaseModelOutputWithPast):
    """States as a decoder returns them; whatever else a class looks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _decoder_answers(model: PreTrainedModel, answer: _Answer) -> Iterator[None]:
    """Within the context the decoder computes nothing and returns ``answer``."""
    modules = _around_embeddings(model)  # several: the head of OPT reads from its decoder's decoder
    with replaced_forward(modules, lambda _: lambda *_, **__: answer):
        yield


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """See on a few tokens that both halves together are the whole model.

    Args:
        model: in evaluation mode.

    Raises:
        InputError: the head reads something else than the decoder's final states.
    """
    tokens = (torch.arange(8, device=model.device) % vocabulary_size(model))[None]
    try:
        wanted = model(input_ids=tokens, use_cache=False).logits[0]
        logits = logits_of(model, final_states(model, tokens)[0])
        off = float((logits - wanted).abs().max())
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise _unclear(model, f"its own code fails on them ({error})") from error
    scale = float(wanted.abs().max())
    if off > torch.finfo(wanted.dtype).eps ** 0.5 * scale:
        raise _unclear(model, f"logits made from them differ by {off:.2g} from those of up to {scale:.2g}")


def _unclear(model: PreTrainedModel, what: str) -> InputError:
    return InputError(
        "The logits of a teacher have to follow from its final hidden states",
        f"in {model.config.model_type!r}, {what}",
        "Choose another teacher with --model",
    )
