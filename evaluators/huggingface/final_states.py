"""Split a causal language model in two: final hidden states, and the head that turns them into logits.

Losses apply the head to slices of tokens, so that the logits of a whole batch never exist at once. Heads
differ by class: a bias in Phi, a soft cap in Gemma 2, a scale in Cohere, a divisor in Granite and MiniCPM. So
the head runs by the class's own code, with the decoder replaced by a function that returns given states.
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

#: Logits held at once by a loss: 2^24 float32 values are 64 MB.
_LOGITS_AT_ONCE = 2**24


def decoder(model: PreTrainedModel) -> nn.Module:
    """Return the part of the model below the head: the outermost submodule with the input embeddings.

    Raises:
        InputError: the class has none, as some that come with a model.
    """
    around = _modules_around_embeddings(model)
    if not around:
        raise InputError(
            "A teacher's embedding and layers have to lie in a module of their own, below the head",
            f"those of {type(model).__name__} lie beside it",
            "Name a model of another class",
        )
    return around[0]


def _modules_around_embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """Return the submodules of the model that contain its input embeddings, outermost first."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]


def final_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Compute the states (B, T, D) that the head reads, after the final norm.

    Args:
        model: a causal language model.
        tokens: (B, T) token ids.
    """
    output = decoder(model)(input_ids=tokens, use_cache=False)
    return cast(Tensor, output.last_hidden_state)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Compute logits (n, V) from final states by the model's own code; gradients reach head and states.

    Args:
        model: a causal language model that passes ``check_head``.
        states: (n, D) final states of any tokens, from ``final_states``.
    """
    tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with _replaced_decoder(model, _DecoderOutput(last_hidden_state=cast(Any, states[None]))):
        return cast(Tensor, model(input_ids=tokens, use_cache=False).logits[0])


def head_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of the head's weights, to which states stored in fewer bits are converted."""
    dtype: torch.dtype = model.get_output_embeddings().weight.dtype
    return dtype


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters that turn final states into logits, a tied embedding included."""
    below = {id(parameter) for parameter in decoder(model).parameters()}
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    return [p for p in model.parameters() if id(p) in head or id(p) not in below]


def states_width(model: PreTrainedModel) -> int:
    """Return D, the width of the states that the head reads; in OPT it may be smaller than hidden."""
    return int(model.get_output_embeddings().weight.shape[1])


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return V, the number of logits per token."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def token_slice(vocabulary: int) -> int:
    """Return for how many tokens a loss may hold the logits at once."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)


class _DecoderOutput(BaseModelOutputWithPast):
    """States in the form of a decoder's output; every other field that a class reads is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def replaced_forward(
    modules: Sequence[nn.Module], by: Callable[[Callable[..., object]], Callable[..., object]]
) -> Iterator[None]:
    """Within the context, replace the ``forward`` of each module by ``by(forward)``."""
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


@contextmanager
def _replaced_decoder(model: PreTrainedModel, output: _DecoderOutput) -> Iterator[None]:
    """Within the context, the decoder computes nothing and returns ``output``."""
    modules = _modules_around_embeddings(model)  # all: the head of OPT reads from a nested decoder
    with replaced_forward(modules, lambda _: lambda *_, **__: output):
        yield


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Check on a few tokens that head and final states together give the model's logits.

    Args:
        model: in evaluation mode.

    Raises:
        InputError: the head reads something other than the decoder's final states.
    """
    tokens = (torch.arange(8, device=model.device) % vocabulary_size(model))[None]
    try:
        expected = model(input_ids=tokens, use_cache=False).logits[0]
        logits = logits_of(model, final_states(model, tokens)[0])
        difference = float((logits - expected).abs().max())
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise _refusal(model, f"its own code fails on them ({error})") from error
    scale = float(expected.abs().max())
    if difference > torch.finfo(expected.dtype).eps ** 0.5 * scale:
        raise _refusal(
            model, f"logits made from them differ by {difference:.2g} from those of up to {scale:.2g}"
        )


def _refusal(model: PreTrainedModel, what: str) -> InputError:
    return InputError(
        "The logits of a teacher have to follow from its final hidden states",
        f"in {model.config.model_type!r}, {what}",
        "Choose another teacher with --model",
    )
